// Sixteen floats in one AVX-512 register. Included inside an anonymous namespace; see lanes_scalar.h for the meaning.

struct Lanes {
  __m512 all;
};

constexpr int kAccumulators = 24;
constexpr int kTileRows = 6;
constexpr int kTilePanels = 8;
constexpr bool kWidensCheaply = true;

inline void keep_in_register(Lanes& v) {
  __asm__ volatile("" : "+v"(v.all));
}
inline Lanes broadcast(float value) {
  return {_mm512_set1_ps(value)};
}
inline Lanes load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
inline void store(float* p, Lanes v) {
  _mm512_storeu_ps(p, v.all);
}
inline Lanes add(Lanes a, Lanes b) {
  return {_mm512_add_ps(a.all, b.all)};
}
inline Lanes sub(Lanes a, Lanes b) {
  return {_mm512_sub_ps(a.all, b.all)};
}
inline Lanes mul(Lanes a, Lanes b) {
  return {_mm512_mul_ps(a.all, b.all)};
}
inline Lanes div(Lanes a, Lanes b) {
  return {_mm512_div_ps(a.all, b.all)};
}
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
  return {_mm512_fmadd_ps(a.all, b.all, c.all)};
}
inline Lanes max(Lanes a, Lanes b) {
  return {_mm512_max_ps(a.all, b.all)};
}
inline Lanes min(Lanes a, Lanes b) {
  return {_mm512_min_ps(a.all, b.all)};
}
inline Lanes select_less(Lanes a, Lanes b, Lanes x, Lanes y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.all, b.all, _CMP_LT_OQ), y.all, x.all)};
}
inline Lanes magnitude(Lanes a) {
  return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.all)};
}
inline Lanes with_sign(Lanes a, Lanes b) {
  return {_mm512_or_ps(a.all, _mm512_and_ps(_mm512_set1_ps(-0.0f), b.all))};
}
inline Lanes power_below(Lanes a) {
  return {_mm512_and_ps(_mm512_castsi512_ps(_mm512_set1_epi32(0x7f800000)), a.all)};
}
inline Lanes round_nearest(Lanes a) {
  const __m512 magic = _mm512_set1_ps(12582912.0f);
  return {_mm512_sub_ps(_mm512_add_ps(a.all, magic), magic)};
}
inline Lanes power_of_two(Lanes n) {
  const __m512i biased = _mm512_castps_si512(_mm512_add_ps(n.all, _mm512_set1_ps(12582912.0f)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(biased, _mm512_set1_epi32(127 - 0x4b400000)), 23))};
}

inline __mmask16 part_mask(std::int64_t count) {
  return static_cast<__mmask16>((1u << count) - 1u);
}
inline Lanes load_part(const float* p, std::int64_t count) {
  return {_mm512_maskz_loadu_ps(part_mask(count), p)};
}
inline void store_part(float* p, Lanes v, std::int64_t count) {
  _mm512_mask_storeu_ps(p, part_mask(count), v.all);
}

inline float reduce_add(Lanes v) {
  return reduce_add(_mm256_add_ps(_mm512_castps512_ps256(v.all), _mm512_extractf32x8_ps(v.all, 1)));
}
inline float reduce_max(Lanes v) {
  return reduce_max(_mm256_max_ps(_mm512_castps512_ps256(v.all), _mm512_extractf32x8_ps(v.all, 1)));
}

inline Lanes load(const Bf16* p) {
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16))};
}
inline Lanes load(const Half* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Lanes load(const E4m3* p) {
  return {_mm512_cvtph_ps(halves_of_e4m3(p))};
}
inline void store(E4m3* p, Lanes v) {
  store_halves(p, _mm512_cvtps_ph(v.all, _MM_FROUND_TO_NEAREST_INT));
}
inline Lanes load(const E5m2* p) {
  return {_mm512_cvtph_ps(halves_of_e5m2(p))};
}
inline void store(E5m2* p, Lanes v) {
  store_halves(p, _mm512_cvtps_ph(v.all, _MM_FROUND_TO_NEAREST_INT));
}
inline Lanes widen_codes(__m128i codes) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))};
}
inline void load_pairs(const Int4* p, Lanes& first, Lanes& second) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  first = widen_codes(low_codes(bytes));
  second = widen_codes(high_codes(bytes));
}
inline Lanes load(const Int4* p) {
  return widen_codes(codes_in_order(p));
}
/// As bf16_bits of lanes_x86.h; not the processor's own conversion, which flushes subnormals.
inline __m512i bf16_bits(Lanes v) {
  const __m512i bits = _mm512_castps_si512(v.all);
  const __m512i top = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(v.all, v.all, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(rounded, nan, top, _mm512_set1_epi32(0x40));
}
inline void store(Bf16* p, Lanes v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bf16_bits(v)));
}
inline Lanes round_to_bf16(Lanes v) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(bf16_bits(v), 16))};
}

// In whatever order is cheapest: here in their own.
inline Lanes load_paired(const Bf16* p) {
  return load(p);
}
inline Lanes in_order(Lanes paired) {
  return paired;
}
