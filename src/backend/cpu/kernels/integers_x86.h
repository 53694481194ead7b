// Sixteen integer sums in two AVX registers. Included inside an anonymous namespace; see integers_scalar.h for the
// meaning. The AVX-512 level uses it too: sums of integers are exact, so levels cannot differ.

struct IntLanes {
  __m256i low, high;  // outputs 0 to 7, 8 to 15
};

constexpr int kIntegerTileRows = 4;

inline IntLanes no_sums() {
  return {_mm256_setzero_si256(), _mm256_setzero_si256()};
}

inline IntLanes subtract_zeros(IntLanes sums, const std::uint8_t* zeros, std::int32_t inputs) {
  const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros));
  const __m256i times = _mm256_set1_epi32(inputs);
  const __m256i low = _mm256_cvtepu8_epi32(all), high = _mm256_cvtepu8_epi32(_mm_srli_si128(all, 8));
  return {_mm256_sub_epi32(sums.low, _mm256_mullo_epi32(low, times)),
          _mm256_sub_epi32(sums.high, _mm256_mullo_epi32(high, times))};
}

inline Lanes to_lanes(IntLanes sums) {
#if defined(__AVX512F__)
  return {_mm512_cvtepi32_ps(_mm512_inserti64x4(_mm512_castsi256_si512(sums.low), sums.high, 1))};
#else
  return {_mm256_cvtepi32_ps(sums.low), _mm256_cvtepi32_ps(sums.high)};
#endif
}

inline __m256i four_inputs(const std::int8_t* x) {
  std::int32_t word;
  __builtin_memcpy(&word, x, sizeof word);
  return _mm256_set1_epi32(word);
}

/// The unsigned operand is the weight's magnitude, so the input takes the weight's sign. Two products are at most
/// 2 * 128 * 127, which 16 bits hold.
template <int kRows>
inline void add_products_8(const std::byte* codes, const std::int8_t* x, std::int64_t x_stride, std::int64_t blocks,
                           IntLanes (&sums)[kRows]) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (std::int64_t quad = 0; quad < blocks * (kIntegerBlock / 4); ++quad) {
    const auto* w = reinterpret_cast<const __m256i*>(codes + quad * 64);
    __builtin_prefetch(reinterpret_cast<const char*>(w) + 2048);
    const __m256i low = _mm256_loadu_si256(w), high = _mm256_loadu_si256(w + 1);
    const __m256i low_size = _mm256_abs_epi8(low), high_size = _mm256_abs_epi8(high);
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      const __m256i input = four_inputs(x + r * x_stride + quad * 4);
      const __m256i a = _mm256_maddubs_epi16(low_size, _mm256_sign_epi8(input, low));
      const __m256i b = _mm256_maddubs_epi16(high_size, _mm256_sign_epi8(input, high));
      sums[r].low = _mm256_add_epi32(sums[r].low, _mm256_madd_epi16(a, ones));
      sums[r].high = _mm256_add_epi32(sums[r].high, _mm256_madd_epi16(b, ones));
    }
  }
}

/// Two products are at most 2 * 15 * 127; those of a block, eight times as much, still fit 16 bits.
template <int kRows>
inline void add_products_4(const std::byte* codes, const std::int8_t* x, std::int64_t x_stride, std::int64_t blocks,
                           IntLanes (&sums)[kRows]) {
  const __m256i ones = _mm256_set1_epi16(1), nibble = _mm256_set1_epi8(15);
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::byte* w = codes + block * (kIntegerBlock / 4) * 32;
    const std::int8_t* inputs = x + block * kIntegerBlock;
    __m256i low[kRows], high[kRows];
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) low[r] = high[r] = _mm256_setzero_si256();
    // Unrolled, this loop makes the compiler regroup the sums, and most of them go through memory.
    MILLRACE_ROLLED for (int quad = 0; quad < kIntegerBlock / 4; ++quad) {
      __builtin_prefetch(reinterpret_cast<const char*>(w) + 2048 + quad * 32);
      const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + quad * 32));
      const __m256i first = _mm256_and_si256(both, nibble);
      const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
      MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
        const __m256i input = four_inputs(inputs + r * x_stride + quad * 4);
        low[r] = _mm256_add_epi16(low[r], _mm256_maddubs_epi16(first, input));
        high[r] = _mm256_add_epi16(high[r], _mm256_maddubs_epi16(second, input));
      }
    }
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      sums[r].low = _mm256_add_epi32(sums[r].low, _mm256_madd_epi16(low[r], ones));
      sums[r].high = _mm256_add_epi32(sums[r].high, _mm256_madd_epi16(high[r], ones));
    }
  }
}
