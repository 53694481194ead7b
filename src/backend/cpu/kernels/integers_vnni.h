// Sixteen integer sums by the instruction that adds four products of bytes at once (VNNI): in one AVX-512 register, or
// in two of AVX where there is only AVX-VNNI. Included inside an anonymous namespace; see integers_scalar.h for the
// meaning.
//
// The instruction takes codes without sign, so 128 is added to those of 8 bits and taken off again as a zero is: from
// the sum of the inputs, before the products. Sums may wrap on the way; what is left at the end fits.

#if defined(__AVX512VNNI__)
struct IntLanes {
  __m512i all;
};

constexpr int kIntegerTileRows = 12;  // with as many float sums, and what else a product needs

inline IntLanes same_integers(std::int32_t value) {
  return {_mm512_set1_epi32(value)};
}
inline IntLanes add_integers(IntLanes a, IntLanes b) {
  return {_mm512_add_epi32(a.all, b.all)};
}
inline IntLanes multiply_integers(IntLanes a, IntLanes b) {
  return {_mm512_mullo_epi32(a.all, b.all)};
}
inline IntLanes widen_unsigned(const std::uint8_t* stored) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(stored)))};
}
inline Lanes to_lanes(IntLanes sums) {
  return {_mm512_cvtepi32_ps(sums.all)};
}
inline void keep_in_register(IntLanes& sums) {
  __asm__ volatile("" : "+v"(sums.all));
}
/// sum + four products of each lane's bytes with the inputs.
inline IntLanes add_products(IntLanes sum, IntLanes codes, const std::int8_t* inputs) {
  std::int32_t word;
  __builtin_memcpy(&word, inputs, sizeof word);
  return {_mm512_dpbusd_epi32(sum.all, codes.all, _mm512_set1_epi32(word))};
}

/// The codes of four inputs of a panel, raised to be without sign.
template <CodeKind kKind>
inline IntLanes raised_codes(const std::byte* codes) {
  if constexpr (kKind == CodeKind::int8) {
    return {_mm512_xor_si512(_mm512_loadu_si512(codes), _mm512_set1_epi8(-128))};
  } else {
    const __m512i both = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
    const __m512i shifts = _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4);
    const __m512i nibbles = _mm512_and_si512(_mm512_srlv_epi64(both, shifts), _mm512_set1_epi8(15));
    if constexpr (kKind == CodeKind::int4) return {nibbles};
    const __m512i steps = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kE2m1Raised)));
    return {_mm512_shuffle_epi8(steps, nibbles)};
  }
}
#else
struct IntLanes {
  __m256i low, high;
};

constexpr int kIntegerTileRows = 5;

inline IntLanes same_integers(std::int32_t value) {
  return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)};
}
inline IntLanes add_integers(IntLanes a, IntLanes b) {
  return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
inline IntLanes multiply_integers(IntLanes a, IntLanes b) {
  return {_mm256_mullo_epi32(a.low, b.low), _mm256_mullo_epi32(a.high, b.high)};
}
inline IntLanes widen_unsigned(const std::uint8_t* stored) {
  const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(stored));
  return {_mm256_cvtepu8_epi32(all), _mm256_cvtepu8_epi32(_mm_srli_si128(all, 8))};
}
inline Lanes to_lanes(IntLanes sums) {
  return to_lanes(sums.low, sums.high);
}
inline void keep_in_register(IntLanes& sums) {
  __asm__ volatile("" : "+x"(sums.low), "+x"(sums.high));
}
inline IntLanes add_products(IntLanes sum, IntLanes codes, const std::int8_t* inputs) {
  const __m256i input = four_inputs(inputs);
  return {_mm256_dpbusd_avx_epi32(sum.low, codes.low, input), _mm256_dpbusd_avx_epi32(sum.high, codes.high, input)};
}

template <CodeKind kKind>
inline IntLanes raised_codes(const std::byte* codes) {
  const auto* w = reinterpret_cast<const __m256i*>(codes);
  const __m256i first = _mm256_loadu_si256(w);
  if constexpr (kKind == CodeKind::int8) {
    const __m256i sign = _mm256_set1_epi8(-128);
    return {_mm256_xor_si256(first, sign), _mm256_xor_si256(_mm256_loadu_si256(w + 1), sign)};
  } else {
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i low = _mm256_and_si256(first, nibble), high = _mm256_and_si256(_mm256_srli_epi16(first, 4), nibble);
    if constexpr (kKind == CodeKind::int4) return {low, high};
    const __m256i steps = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kE2m1Raised)));
    return {_mm256_shuffle_epi8(steps, low), _mm256_shuffle_epi8(steps, high)};
  }
}
#endif

using Zeros = IntLanes;

inline Zeros zeros_of(std::int32_t zero) {
  return same_integers(zero);
}
inline Zeros zeros_of(const std::uint8_t* stored) {
  return widen_unsigned(stored);
}

/// Adds the products of a group. Few rows have several sums each, since a sum waits some five cycles for itself.
template <int kRows, CodeKind kKind>
MILLRACE_INLINE void add_group(const std::byte* codes, const InputBlocks<kRows>& inputs, IntLanes (&sums)[kRows]) {
  constexpr int kSums = kRows >= 5 ? 1 : kRows >= 3 ? 2 : 4;  // divides the quads of a block
  constexpr std::int64_t kQuadBytes = kKind == CodeKind::int8 ? 64 : 32;
  IntLanes more[kRows][kSums];
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    MILLRACE_UNROLL for (int i = 1; i < kSums; ++i) more[r][i] = same_integers(0);
  }
  MILLRACE_ROLLED for (std::int64_t quad = 0; quad < inputs.count / 4; quad += kSums) {
    MILLRACE_UNROLL for (int i = 0; i < kSums; ++i) {
      const std::byte* const now = codes + (quad + i) * kQuadBytes;
      __builtin_prefetch(reinterpret_cast<const char*>(now) + 2048);
      const IntLanes weights = raised_codes<kKind>(now);
      MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
        const std::int8_t* const x = inputs.codes + r * inputs.stride + (quad + i) * 4;
        IntLanes& sum = i == 0 ? sums[r] : more[r][i];
        sum = add_products(sum, weights, x);
      }
    }
  }
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    MILLRACE_UNROLL for (int i = 1; i < kSums; ++i) sums[r] = add_integers(sums[r], more[r][i]);
  }
}

template <int kRows, CodeKind kKind>
MILLRACE_INLINE void multiply_group(const std::byte* codes, const InputBlocks<kRows>& inputs, IntLanes (&sums)[kRows]) {
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    sums[r] = same_integers(kKind == CodeKind::int8 ? -128 * inputs.total(r) : 0);
  }
  add_group<kRows, kKind>(codes, inputs, sums);
}

template <int kRows, CodeKind kKind>
MILLRACE_INLINE void multiply_group(const std::byte* codes, const InputBlocks<kRows>& inputs, const Zeros& zeros,
                                    IntLanes (&sums)[kRows]) {
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    sums[r] = multiply_integers(zeros, same_integers(-inputs.total(r)));
  }
  add_group<kRows, kKind>(codes, inputs, sums);
}

/// For the measure of what is possible (limits.h).
inline std::int64_t multiply_add_bytes(std::int64_t rounds, float* sink) {
  constexpr int kChains = 12;
  constexpr std::int8_t kInputs[4] = {3, 3, 3, 3};
  const IntLanes codes = same_integers(0x01020304);
#if defined(__AVX512VNNI__)
  constexpr int kUsed = kChains;
#else
  constexpr int kUsed = kChains / 2;  // of two registers each
#endif
  IntLanes chains[kUsed];
  MILLRACE_UNROLL for (int i = 0; i < kUsed; ++i) chains[i] = same_integers(i);
  for (std::int64_t round = 0; round < rounds; ++round) {
    MILLRACE_UNROLL for (int i = 0; i < kUsed; ++i) {
      chains[i] = add_products(chains[i], codes, kInputs);
      keep_in_register(chains[i]);
    }
  }
  IntLanes all = chains[0];
  MILLRACE_UNROLL for (int i = 1; i < kUsed; ++i) all = add_integers(all, chains[i]);
  *sink = reduce_add(to_lanes(all));
  return rounds * kUsed * 64 * 2;
}
