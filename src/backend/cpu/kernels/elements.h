// Stored elements of 16 and 8 bits. Included inside an anonymous namespace (see kernel_table.h).

struct Bf16 {
  std::uint16_t bits;
};
struct Half {
  std::uint16_t bits;
};
struct E4m3 {
  std::uint8_t bits;
};

/// load() of E4m3 gives its values divided by this, which are halves with the same bits of exponent and mantissa.
constexpr float kE4m3Unit = 256.0f;

// Loops over arrays of registers must be unrolled whole, or the arrays go to memory. MILLRACE_ROLLED keeps a loop a
// loop.
#if defined(__clang__)
#define MILLRACE_UNROLL _Pragma("unroll")
#define MILLRACE_ROLLED _Pragma("nounroll")
#else
#define MILLRACE_UNROLL _Pragma("GCC unroll 16")
#define MILLRACE_ROLLED _Pragma("GCC unroll 1")
#endif
