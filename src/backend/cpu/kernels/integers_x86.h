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

inline IntLanes subtract(IntLanes sums, std::int32_t amount) {
  const __m256i all = _mm256_set1_epi32(amount);
  return {_mm256_sub_epi32(sums.low, all), _mm256_sub_epi32(sums.high, all)};
}

inline Lanes to_lanes(IntLanes sums) {
#if defined(__AVX512F__)
  return {_mm512_cvtepi32_ps(_mm512_inserti64x4(_mm512_castsi256_si512(sums.low), sums.high, 1))};
#else
  return {_mm256_cvtepi32_ps(sums.low), _mm256_cvtepi32_ps(sums.high)};
#endif
}

inline Lanes load(const std::int8_t* p) {
  const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return to_lanes({_mm256_cvtepi8_epi32(all), _mm256_cvtepi8_epi32(_mm_srli_si128(all, 8))});
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
  return to_lanes({_mm256_cvtepu8_epi32(all), _mm256_cvtepu8_epi32(_mm_srli_si128(all, 8))});
}

inline Lanes load(const Int8* p) {
  return load(&p->code);
}
inline void store(Int8* p, Lanes v) {
  store(&p->code, v);
}

/// Tells the compiler that the sum is needed here, in a register. Else it gathers the products of all rows before it
/// adds any, runs out of registers, and a sum that goes through memory waits for itself in every round.
inline void keep_in_register(__m256i& sum) {
  __asm__ volatile("" : "+x"(sum));
}

inline __m256i four_inputs(const std::int8_t* x) {
  std::int32_t word;
  __builtin_memcpy(&word, x, sizeof word);
  return _mm256_set1_epi32(word);
}

/// The unsigned operand is the weight's magnitude, so the input takes the weight's sign. Two products are at most
/// 2 * 128 * 127, which 16 bits hold.
template <int kRows>
inline void add_products_8(const std::byte* codes, const std::int8_t* x, std::int64_t x_stride, std::int64_t count,
                           IntLanes (&sums)[kRows]) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (std::int64_t quad = 0; quad < count / 4; ++quad) {
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
      keep_in_register(sums[r].low);
      keep_in_register(sums[r].high);
    }
  }
}

/// Two products are at most 2 * 15 * 127; those of kIntegerBlock inputs, eight times as much, still fit 16 bits. A step
/// of E2M1 with its zero is at most 24: then those of kInputBlock inputs fit.
template <int kRows, bool kE2m1>
inline void add_products_4(const std::byte* codes, const std::int8_t* x, std::int64_t x_stride, std::int64_t count,
                           IntLanes (&sums)[kRows]) {
  constexpr int kBlock = kE2m1 ? kInputBlock : kIntegerBlock;
  const __m256i ones = _mm256_set1_epi16(1), nibble = _mm256_set1_epi8(15);
  const __m256i steps = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kE2m1Raised)));
  for (std::int64_t block = 0; block < count / kBlock; ++block) {
    const std::byte* w = codes + block * (kBlock / 4) * 32;
    const std::int8_t* inputs = x + block * kBlock;
    __m256i low[kRows], high[kRows];
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) low[r] = high[r] = _mm256_setzero_si256();
    MILLRACE_ROLLED for (int quad = 0; quad < kBlock / 4; ++quad) {
      __builtin_prefetch(reinterpret_cast<const char*>(w) + 2048 + quad * 32);
      const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + quad * 32));
      __m256i first = _mm256_and_si256(both, nibble);
      __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
      if constexpr (kE2m1) {
        first = _mm256_shuffle_epi8(steps, first);
        second = _mm256_shuffle_epi8(steps, second);
      }
      MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
        const __m256i input = four_inputs(inputs + r * x_stride + quad * 4);
        low[r] = _mm256_add_epi16(low[r], _mm256_maddubs_epi16(first, input));
        high[r] = _mm256_add_epi16(high[r], _mm256_maddubs_epi16(second, input));
        keep_in_register(low[r]);
        keep_in_register(high[r]);
      }
    }
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      sums[r].low = _mm256_add_epi32(sums[r].low, _mm256_madd_epi16(low[r], ones));
      sums[r].high = _mm256_add_epi32(sums[r].high, _mm256_madd_epi16(high[r], ones));
    }
  }
}

template <int kRows, CodeKind kKind>
inline void add_products(const std::byte* codes, const std::int8_t* x, std::int64_t x_stride, std::int64_t count,
                         IntLanes (&sums)[kRows]) {
  if constexpr (kKind == CodeKind::int8) {
    add_products_8<kRows>(codes, x, x_stride, count, sums);
  } else {
    add_products_4<kRows, kKind == CodeKind::e2m1>(codes, x, x_stride, count, sums);
  }
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
  MILLRACE_UNROLL for (int i = 0; i < 4; ++i) steps[i] = to_lanes({raised_byte(low, i), raised_byte(high, i)});
}

/// For the measure of what is possible (limits.h): bytes that are multiplied and summed in 16 bits.
std::int64_t multiply_add_bytes(std::int64_t rounds, float* sink) {
  constexpr int kChains = 12;
  __m256i chains[kChains];
  MILLRACE_UNROLL for (int i = 0; i < kChains; ++i) chains[i] = _mm256_set1_epi8(static_cast<char>(i));
  const __m256i factor = _mm256_set1_epi8(3);
  for (std::int64_t round = 0; round < rounds; ++round) {
    MILLRACE_UNROLL for (int i = 0; i < kChains; ++i) {
      chains[i] = _mm256_add_epi16(chains[i], _mm256_maddubs_epi16(chains[i], factor));
      keep_in_register(chains[i]);
    }
  }
  __m256i all = chains[0];
  MILLRACE_UNROLL for (int i = 1; i < kChains; ++i) all = _mm256_add_epi16(all, chains[i]);
  *sink = static_cast<float>(_mm256_extract_epi16(all, 0));
  return rounds * kChains * 32 * 2;
}
