// Sixteen floats in two AVX registers. Included inside an anonymous namespace; see lanes_scalar.h for the meaning.

struct Lanes {
  __m256 low, high;
};

constexpr int kAccumulators = 6;
constexpr int kTileRows = 6;
constexpr int kTilePanels = 4;
constexpr bool kWidensCheaply = true;

inline void keep_in_register(Lanes& v) {
  __asm__ volatile("" : "+x"(v.low), "+x"(v.high));
}
inline Lanes broadcast(float value) {
  return {_mm256_set1_ps(value), _mm256_set1_ps(value)};
}
inline Lanes load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
inline void store(float* p, Lanes v) {
  _mm256_storeu_ps(p, v.low);
  _mm256_storeu_ps(p + 8, v.high);
}
inline Lanes add(Lanes a, Lanes b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline Lanes sub(Lanes a, Lanes b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline Lanes mul(Lanes a, Lanes b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Lanes div(Lanes a, Lanes b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Lanes max(Lanes a, Lanes b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline Lanes min(Lanes a, Lanes b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
inline Lanes select_less(Lanes a, Lanes b, Lanes x, Lanes y) {
  return {_mm256_blendv_ps(y.low, x.low, _mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)),
          _mm256_blendv_ps(y.high, x.high, _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))};
}
inline Lanes magnitude(Lanes a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
inline Lanes with_sign(Lanes a, Lanes b) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_or_ps(a.low, _mm256_and_ps(sign, b.low)), _mm256_or_ps(a.high, _mm256_and_ps(sign, b.high))};
}
inline Lanes power_below(Lanes a) {
  const __m256 exponent = _mm256_castsi256_ps(_mm256_set1_epi32(0x7f800000));
  return {_mm256_and_ps(exponent, a.low), _mm256_and_ps(exponent, a.high)};
}
inline Lanes round_nearest(Lanes a) {
  const __m256 magic = _mm256_set1_ps(12582912.0f);
  return {_mm256_sub_ps(_mm256_add_ps(a.low, magic), magic), _mm256_sub_ps(_mm256_add_ps(a.high, magic), magic)};
}
inline __m256 power_of_two_half(__m256 n) {
  const __m256i biased = _mm256_castps_si256(_mm256_add_ps(n, _mm256_set1_ps(12582912.0f)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(biased, _mm256_set1_epi32(127 - 0x4b400000)), 23));
}
inline Lanes power_of_two(Lanes n) {
  return {power_of_two_half(n.low), power_of_two_half(n.high)};
}

inline __m256i part_mask(std::int64_t count) {
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), index);
}
inline Lanes load_part(const float* p, std::int64_t count) {
  if (count == 16) return load(p);
  if (count <= 8) return {_mm256_maskload_ps(p, part_mask(count)), _mm256_setzero_ps()};
  return {_mm256_loadu_ps(p), _mm256_maskload_ps(p + 8, part_mask(count - 8))};
}
inline void store_part(float* p, Lanes v, std::int64_t count) {
  if (count == 16) return store(p, v);  // a masked store is some twenty instructions inside
  if (count <= 8) {
    _mm256_maskstore_ps(p, part_mask(count), v.low);
  } else {
    _mm256_storeu_ps(p, v.low);
    _mm256_maskstore_ps(p + 8, part_mask(count - 8), v.high);
  }
}

inline float reduce_add(Lanes v) {
  return reduce_add(_mm256_add_ps(v.low, v.high));
}
inline float reduce_max(Lanes v) {
  return reduce_max(_mm256_max_ps(v.low, v.high));
}

inline Lanes load(const Bf16* p) {
  return {widen(p), widen(p + 8)};
}
inline Lanes load(const Half* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline Lanes load(const E4m3* p) {
  const __m256i halves = halves_of_e4m3(p);
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
}
inline void store(E4m3* p, Lanes v) {
  const __m128i low = _mm256_cvtps_ph(v.low, _MM_FROUND_TO_NEAREST_INT),
                high = _mm256_cvtps_ph(v.high, _MM_FROUND_TO_NEAREST_INT);
  store_halves(p, _mm256_set_m128i(high, low));
}
inline Lanes load(const E5m2* p) {
  const __m256i halves = halves_of_e5m2(p);
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
}
inline void store(E5m2* p, Lanes v) {
  const __m128i low = _mm256_cvtps_ph(v.low, _MM_FROUND_TO_NEAREST_INT),
                high = _mm256_cvtps_ph(v.high, _MM_FROUND_TO_NEAREST_INT);
  store_halves(p, _mm256_set_m128i(high, low));
}
inline Lanes widen_codes(__m128i codes) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(codes, 8)))};
}
inline void load_pairs(const Int4* p, Lanes& first, Lanes& second) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  first = widen_codes(low_codes(bytes));
  second = widen_codes(high_codes(bytes));
}
inline Lanes load(const Int4* p) {
  return widen_codes(codes_in_order(p));
}
inline void store(Bf16* p, Lanes v) {
  // Packing works within the 128-bit halves; the permutation puts the four quarters back in order.
  const __m256i words = _mm256_packus_epi32(bf16_bits(v.low), bf16_bits(v.high));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(words, 0xd8));
}
inline Lanes round_to_bf16(Lanes v) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(bf16_bits(v.low), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(bf16_bits(v.high), 16))};
}

// Elements with even indexes in the lower half and odd ones in the upper, which is cheaper than their order.
inline Lanes load_paired(const Bf16* p) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)),
          _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
}
inline Lanes in_order(Lanes paired) {
  const __m256 first = _mm256_unpacklo_ps(paired.low, paired.high),
               second = _mm256_unpackhi_ps(paired.low, paired.high);
  return {_mm256_permute2f128_ps(first, second, 0x20), _mm256_permute2f128_ps(first, second, 0x31)};
}
