// Stored 16-bit elements. Included inside an anonymous namespace (see kernel_table.h).

struct Bf16 {
  std::uint16_t bits;
};
struct Half {
  std::uint16_t bits;
};

// Loops over arrays of registers must be unrolled whole, or the arrays go to memory. MILLRACE_ROLLED keeps a loop a
// loop.
#if defined(__clang__)
#define MILLRACE_UNROLL _Pragma("unroll")
#define MILLRACE_ROLLED _Pragma("nounroll")
#else
#define MILLRACE_UNROLL _Pragma("GCC unroll 16")
#define MILLRACE_ROLLED _Pragma("GCC unroll 1")
#endif
