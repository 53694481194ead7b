// Codes in registers, for all x86 levels. Included inside an anonymous namespace; see integers_scalar.h for the
// meaning.

/// Sixteen integers, 0 to 7 and 8 to 15.
inline Lanes to_lanes(__m256i low, __m256i high) {
#if defined(__AVX512F__)
  return {_mm512_cvtepi32_ps(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1))};
#else
  return {_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)};
#endif
}

inline Lanes load(const std::int8_t* p) {
  return widen_codes(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void store(std::int8_t* p, Lanes v) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v.all)));
#else
  // Packing works within the 128-bit halves; the permutation puts the four quarters back in order.
  const __m256i words =
      _mm256_permute4x64_epi64(_mm256_packs_epi32(_mm256_cvtps_epi32(v.low), _mm256_cvtps_epi32(v.high)), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
#endif
}

inline Lanes load_unsigned(const std::uint8_t* p) {
  const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return to_lanes(_mm256_cvtepu8_epi32(all), _mm256_cvtepu8_epi32(_mm_srli_si128(all, 8)));
}

inline Lanes load(const Int8* p) {
  return load(&p->code);
}
inline void store(Int8* p, Lanes v) {
  store(&p->code, v);
}

inline __m256i four_inputs(const std::int8_t* x) {
  std::int32_t word;
  __builtin_memcpy(&word, x, sizeof word);
  return _mm256_set1_epi32(word);
}

inline std::int32_t pair_sums_of(const std::int8_t* codes) {
  const __m128i ones = _mm_set1_epi8(1);
  const __m128i pairs = _mm_maddubs_epi16(ones, _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  const __m128i halves = _mm_add_epi16(pairs, _mm_srli_si128(pairs, 8));
  return _mm_cvtsi128_si32(_mm_add_epi16(halves, _mm_srli_si128(halves, 4)));
}

/// Byte `index` of each lane at its top, zeros below: as integers, the signed bytes times 2^24.
inline __m256i raised_byte(__m256i words, int index) {
  const __m256i first =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, -1, -1, 0, -1, -1, -1, 4, -1, -1, -1, 8, -1, -1, -1, 12));
  return _mm256_shuffle_epi8(words, _mm256_add_epi8(first, _mm256_set1_epi32(index << 24)));
}

constexpr float kWidenedUnit = 0x1p-24f;

template <CodeKind kKind>
inline void widen_quad(const std::byte* codes, Lanes (&steps)[4]) {
  constexpr int kAhead = 1024;  // bytes
  __builtin_prefetch(reinterpret_cast<const char*>(codes) + kAhead);
  const auto* w = reinterpret_cast<const __m256i*>(codes);
  __m256i low = _mm256_loadu_si256(w), high = low;
  if constexpr (kKind == CodeKind::int8) {
    high = _mm256_loadu_si256(w + 1);
  } else {
    const __m256i nibble = _mm256_set1_epi8(15);
    low = _mm256_and_si256(low, nibble);
    high = _mm256_and_si256(_mm256_srli_epi16(high, 4), nibble);
    if constexpr (kKind == CodeKind::e2m1) {
      const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kE2m1Signed)));
      low = _mm256_shuffle_epi8(table, low);
      high = _mm256_shuffle_epi8(table, high);
    }
  }
  MILLRACE_UNROLL for (int i = 0; i < 4; ++i) steps[i] = to_lanes(raised_byte(low, i), raised_byte(high, i));
}
