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
/// Of keys and values alone: load() and store() take its values as they are.
struct E4m3Unscaled {
  E4m3 code;
};
struct E5m2 {
  std::uint8_t bits;
};

/// The steps of the codes of E2M1 with kE2m1Zero added. A table of the kernels' own, which leaves no symbol.
constexpr std::uint8_t kE2m1Raised[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
/// And without it.
constexpr std::int8_t kE2m1Signed[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
static_assert([] {
  for (int code = 0; code < 16; ++code) {
    if (kE2m1Signed[code] != kE2m1Steps[code] || kE2m1Raised[code] != kE2m1Steps[code] + kE2m1Zero) return false;
  }
  return true;
}());

struct Int8 {
  std::int8_t code;
};
/// Two codes 0 to 15, the first in the low half. load() gives 16 of them less kInt4Middle.
struct Int4 {
  std::uint8_t codes;
};
constexpr int kInt4Middle = 8;

/// load() of E4m3 gives its values divided by this, which are halves with the same bits of exponent and mantissa.
constexpr float kE4m3Unit = 256.0f;

// Loops over arrays of registers must be unrolled whole, or the arrays go to memory. MILLRACE_ROLLED keeps a loop a
// loop.
#if defined(__clang__)
#define MILLRACE_UNROLL _Pragma("unroll")
#define MILLRACE_ROLLED _Pragma("nounroll")
#else
#define MILLRACE_UNROLL _Pragma("GCC unroll 32")
#define MILLRACE_ROLLED _Pragma("GCC unroll 1")
#endif

// Pieces of a kernel, whose registers are the kernel's.
#define MILLRACE_INLINE __attribute__((always_inline)) inline
