// What the AVX2 and the AVX-512 level share, on registers of eight floats. Included inside an anonymous namespace.

inline float reduce_add(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline float reduce_max(__m256 v) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

inline __m256 widen(const Bf16* p) {
  const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}
/// Sixteen codes as halves of the same bits, their values divided by kE4m3Unit.
inline __m256i halves_of_e4m3(const E4m3* p) {
  // Moved up by 7 the sign, extended before, stands in the top bit and in the highest of the exponent, which is taken
  // out.
  const __m256i words = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_and_si256(_mm256_slli_epi16(words, 7), _mm256_set1_epi16(static_cast<short>(0xbfff)));
}
/// The codes back from halves that halves_of_e4m3() may give.
inline void store_halves(E4m3* p, __m256i halves) {
  const __m256i size = _mm256_and_si256(_mm256_srli_epi16(halves, 7), _mm256_set1_epi16(0x7f));
  const __m256i sign = _mm256_and_si256(_mm256_srli_epi16(halves, 8), _mm256_set1_epi16(0x80));
  const __m256i codes = _mm256_or_si256(size, sign);
  const __m128i packed = _mm_packus_epi16(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
/// Sixteen codes as the halves whose upper bytes they are.
inline __m256i halves_of_e5m2(const E5m2* p) {
  return _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 8);
}
/// The upper bytes of halves that halves_of_e5m2() may give.
inline void store_halves(E5m2* p, __m256i halves) {
  const __m256i codes = _mm256_srli_epi16(halves, 8);
  const __m128i packed = _mm_packus_epi16(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
/// The low or the high halves of bytes as signed codes.
inline __m128i low_codes(__m128i bytes) {
  return _mm_sub_epi8(_mm_and_si128(bytes, _mm_set1_epi8(15)), _mm_set1_epi8(kInt4Middle));
}
inline __m128i high_codes(__m128i bytes) {
  return low_codes(_mm_srli_epi16(bytes, 4));
}
/// Sixteen numbers in order, which are eight elements.
inline __m128i codes_in_order(const Int4* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm_unpacklo_epi8(low_codes(bytes), high_codes(bytes));
}
/// The bfloat16 nearest to each float in the low half of its lane; a NaN stays one.
inline __m256i bf16_bits(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i top = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i quiet = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, quiet, nan);
}

/// target[c * 16 + r] = rows[r][column + c] for eight rows and columns.
inline void transpose_eight(const float* const* rows, std::int64_t column, float* target) {
  __m256 a[8], b[8];
  // Halves of rows i and i + 4 side by side, so that all later shuffles stay within 128 bits.
  MILLRACE_UNROLL for (int i = 0; i < 4; ++i) {
    const __m128 top_left = _mm_loadu_ps(rows[i] + column), top_right = _mm_loadu_ps(rows[i] + column + 4);
    a[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(top_left), _mm_loadu_ps(rows[i + 4] + column), 1);
    a[i + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(top_right), _mm_loadu_ps(rows[i + 4] + column + 4), 1);
  }
  MILLRACE_UNROLL for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    b[i + 2] = _mm256_unpacklo_ps(a[i + 2], a[i + 3]);
    b[i + 3] = _mm256_unpackhi_ps(a[i + 2], a[i + 3]);
  }
  MILLRACE_UNROLL for (int i = 0; i < 8; i += 4) {
    _mm256_storeu_ps(target + i * 16, _mm256_shuffle_ps(b[i], b[i + 2], 0x44));
    _mm256_storeu_ps(target + (i + 1) * 16, _mm256_shuffle_ps(b[i], b[i + 2], 0xee));
    _mm256_storeu_ps(target + (i + 2) * 16, _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44));
    _mm256_storeu_ps(target + (i + 3) * 16, _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee));
  }
}

/// target[c][r] = rows[r][column + c]: 16 rows of 16 columns, target dense.
inline void transpose(const float* const rows[16], std::int64_t column, float* target) {
  for (int r = 0; r < 16; r += 8) {
    transpose_eight(rows + r, column, target + r);
    transpose_eight(rows + r, column + 8, target + 8 * 16 + r);
  }
}
