#include "runtime/row_kernels.h"

#include <array>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace millrace {

namespace {

namespace portable {

struct Lanes {
  static constexpr std::size_t kWidth = 1;
  using Floats = float;
  using Ints = std::int32_t;
  using UnitSum = std::uint64_t;

  static Floats load(const float* p) { return *p; }
  static void store(float* p, Floats a) { *p = a; }
  static Floats set(float a) { return a; }
  static Floats add(Floats a, Floats b) { return a + b; }
  static Floats sub(Floats a, Floats b) { return a - b; }
  static Floats mul(Floats a, Floats b) { return a * b; }
  static Floats max(Floats a, Floats b) { return a > b ? a : b; }  // b where a is NaN, as in the instruction
  static bool at_least(Floats a, Floats b) { return a >= b; }
  static Floats keep(Floats a, bool kept) { return kept ? a : 0.0f; }
  static std::uint32_t bits(bool mask) { return mask ? 1u : 0u; }
  static Floats add_exponent(Floats a, Floats n) {
    std::uint32_t bits = 0, exponent = 0;
    __builtin_memcpy(&bits, &a, sizeof bits);
    __builtin_memcpy(&exponent, &n, sizeof exponent);
    bits += exponent << 23;
    __builtin_memcpy(&a, &bits, sizeof bits);
    return a;
  }
  static Ints load_ints(const std::int32_t* p) { return *p; }
  static void store_ints(std::int32_t* p, Ints a) { *p = a; }
  static Ints set_int(std::int32_t a) { return a; }
  static Ints add_ints(Ints a, Ints b) {  // wraps around, as the instruction does
    return static_cast<Ints>(static_cast<std::uint32_t>(a) + static_cast<std::uint32_t>(b));
  }
  static Ints sub_ints(Ints a, Ints b) { return a - b; }
  static Ints and_ints(Ints a, Ints b) { return a & b; }
  static Ints greater(Ints a, Ints b) { return a > b ? -1 : 0; }
  static std::uint32_t bits_of_ints(Ints mask) { return static_cast<std::uint32_t>(mask) & 1u; }
  static Ints round(Floats a) { return static_cast<Ints>(__builtin_lrintf(a)); }
  static UnitSum no_units() { return 0; }
  static UnitSum add_units(UnitSum sum, Ints units) { return sum + static_cast<std::uint32_t>(units); }
  static std::uint64_t total(UnitSum sum) { return sum; }
};

#include "runtime/row_kernels_body.h"

constexpr RowKernels kTable = make_table("portable");

}  // namespace portable

#if defined(__x86_64__)
namespace sse2 {

struct Lanes {
  static constexpr std::size_t kWidth = 4;
  using Floats = __m128;
  using Ints = __m128i;
  struct UnitSum {
    __m128i pairs, high;
  };

  static Floats load(const float* p) { return _mm_loadu_ps(p); }
  static void store(float* p, Floats a) { _mm_storeu_ps(p, a); }
  static Floats set(float a) { return _mm_set1_ps(a); }
  static Floats add(Floats a, Floats b) { return _mm_add_ps(a, b); }
  static Floats sub(Floats a, Floats b) { return _mm_sub_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm_mul_ps(a, b); }
  static Floats max(Floats a, Floats b) { return _mm_max_ps(a, b); }
  static Floats at_least(Floats a, Floats b) { return _mm_cmpge_ps(a, b); }
  static Floats keep(Floats a, Floats kept) { return _mm_and_ps(a, kept); }
  static std::uint32_t bits(Floats mask) { return static_cast<std::uint32_t>(_mm_movemask_ps(mask)); }
  static Floats add_exponent(Floats a, Floats n) {
    return _mm_castsi128_ps(_mm_add_epi32(_mm_castps_si128(a), _mm_slli_epi32(_mm_castps_si128(n), 23)));
  }
  static Ints load_ints(const std::int32_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static void store_ints(std::int32_t* p, Ints a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), a); }
  static Ints set_int(std::int32_t a) { return _mm_set1_epi32(a); }
  static Ints add_ints(Ints a, Ints b) { return _mm_add_epi32(a, b); }
  static Ints sub_ints(Ints a, Ints b) { return _mm_sub_epi32(a, b); }
  static Ints and_ints(Ints a, Ints b) { return _mm_and_si128(a, b); }
  static Ints greater(Ints a, Ints b) { return _mm_cmpgt_epi32(a, b); }
  static std::uint32_t bits_of_ints(Ints mask) { return bits(_mm_castsi128_ps(mask)); }
  static Ints round(Floats a) { return _mm_cvtps_epi32(a); }
  static UnitSum no_units() { return {_mm_setzero_si128(), _mm_setzero_si128()}; }
  /// Adds pairs as they stand, low + 2^32 · high, and the high halves once more by themselves: total() can part them.
  static UnitSum add_units(UnitSum sum, Ints units) {
    return {_mm_add_epi64(sum.pairs, units), _mm_add_epi64(sum.high, _mm_srli_epi64(units, 32))};
  }
  static std::uint64_t total(UnitSum sum) {
    std::uint64_t pairs[2], high[2];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(pairs), sum.pairs);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(high), sum.high);
    std::uint64_t result = 0;
    for (int i = 0; i < 2; ++i) result += pairs[i] - (high[i] << 32) + high[i];
    return result;
  }
};

#include "runtime/row_kernels_body.h"  // NOLINT(readability-duplicate-include): of other Lanes

constexpr RowKernels kTable = make_table("sse2");

}  // namespace sse2
#endif

}  // namespace

std::span<const RowKernels* const> row_kernels() {
#if defined(__x86_64__)
  static constexpr std::array<const RowKernels*, 3> kTables{&portable::kTable, &sse2::kTable, &kAvx2RowKernels};
  return std::span(kTables).first(__builtin_cpu_supports("avx2") ? 3 : 2);
#else
  static constexpr std::array<const RowKernels*, 1> kTables{&portable::kTable};
  return kTables;
#endif
}

}  // namespace millrace
