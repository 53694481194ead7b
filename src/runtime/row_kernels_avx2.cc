// The passes of row_kernels.h compiled for AVX2: eight lanes. See row_kernels_body.h for what may not be used here.
#include <immintrin.h>

#include "runtime/row_kernels.h"

namespace millrace {

namespace {

struct Lanes {
  static constexpr std::size_t kWidth = 8;
  using Floats = __m256;
  using Ints = __m256i;
  struct UnitSum {
    __m256i pairs, high;
  };

  static Floats load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Floats a) { _mm256_storeu_ps(p, a); }
  static Floats set(float a) { return _mm256_set1_ps(a); }
  static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
  static Floats at_least(Floats a, Floats b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
  static Floats keep(Floats a, Floats kept) { return _mm256_and_ps(a, kept); }
  static std::uint32_t bits(Floats mask) { return static_cast<std::uint32_t>(_mm256_movemask_ps(mask)); }
  static Floats add_exponent(Floats a, Floats n) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_castps_si256(n), 23)));
  }
  static Ints load_ints(const std::int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store_ints(std::int32_t* p, Ints a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
  static Ints set_int(std::int32_t a) { return _mm256_set1_epi32(a); }
  static Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static Ints sub_ints(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
  static Ints and_ints(Ints a, Ints b) { return _mm256_and_si256(a, b); }
  static Ints greater(Ints a, Ints b) { return _mm256_cmpgt_epi32(a, b); }
  static std::uint32_t bits_of_ints(Ints mask) { return bits(_mm256_castsi256_ps(mask)); }
  static Ints round(Floats a) { return _mm256_cvtps_epi32(a); }
  static UnitSum no_units() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  /// Adds pairs as they stand, low + 2^32 · high, and the high halves once more by themselves: total() can part them.
  static UnitSum add_units(UnitSum sum, Ints units) {
    return {_mm256_add_epi64(sum.pairs, units), _mm256_add_epi64(sum.high, _mm256_srli_epi64(units, 32))};
  }
  static std::uint64_t total(UnitSum sum) {
    std::uint64_t pairs[4], high[4];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(pairs), sum.pairs);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(high), sum.high);
    std::uint64_t result = 0;
    for (int i = 0; i < 4; ++i) result += pairs[i] - (high[i] << 32) + high[i];
    return result;
  }
};

#include "runtime/row_kernels_body.h"

}  // namespace

const RowKernels kAvx2RowKernels = make_table("avx2");

}  // namespace millrace
