// Sixteen integer sums in two AVX registers, without an instruction for dot products. Included inside an anonymous
// namespace; see integers_scalar.h for the meaning. The AVX-512 level uses it too: sums of integers are exact, so
// levels cannot differ.

struct IntLanes {
  __m256i low, high;  // outputs 0 to 7, 8 to 15
};

constexpr int kIntegerTileRows = 4;

struct Zeros {
  __m256i low, high;  // eight outputs each
};

inline Zeros zeros_of(std::int32_t zero) {
  return {_mm256_set1_epi32(zero), _mm256_set1_epi32(zero)};
}
inline Zeros zeros_of(const std::uint8_t* stored) {
  const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(stored));
  return {_mm256_cvtepu8_epi32(all), _mm256_cvtepu8_epi32(_mm_srli_si128(all, 8))};
}

inline Lanes to_lanes(IntLanes sums) {
  return to_lanes(sums.low, sums.high);
}

/// Tells the compiler that the sum is needed here, in a register. Else it gathers the products of all rows before it
/// adds any, runs out of registers, and a sum that goes through memory waits for itself in every round.
inline void keep_in_register(__m256i& sum) {
  __asm__ volatile("" : "+x"(sum));
}

/// sum += amount, which stays where it is for the same reason. Of sums of 16 bits, whose loop is short, the moves weigh
/// that the compiler makes to keep them in registers otherwise.
inline void add_words(__m256i& sum, __m256i amount) {
  __asm__ volatile("vpaddw %1, %0, %0" : "+x"(sum) : "x"(amount));
}

/// Sums of 16 bits of 32 inputs or fewer. A pair of products is added to each of an output's two sums at a time, so
/// that a sum has half of the inputs: with codes of up to 15 and zeros of 0 to 15 (PackedIntegers), 16 products of at
/// most 15 * 127 fit. Steps of E2M1 are up to 24; those need that their zero is off before they come (16 products of at
/// most 12 * 127).
template <int kRows>
struct BlockSums {
  __m256i low[kRows], high[kRows];

  void begin() { MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) low[r] = high[r] = _mm256_setzero_si256(); }

  /// Less the zeros of all inputs of the block.
  void begin(const Zeros& zeros, const std::int32_t* input_sums, std::int64_t stride, bool two) {
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      __m256i inputs = _mm256_set1_epi32(input_sums[r * stride]);
      if (two) inputs = _mm256_add_epi16(inputs, _mm256_set1_epi32(input_sums[r * stride + 1]));
      low[r] = _mm256_mullo_epi16(inputs, zeros.low);
      high[r] = _mm256_mullo_epi16(inputs, zeros.high);
    }
  }

  template <bool kE2m1, int kQuads>
  void take(const std::byte* codes, const std::int8_t* x, std::int64_t x_stride) {
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i steps = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kE2m1Raised)));
    MILLRACE_ROLLED for (int quad = 0; quad < kQuads; ++quad) {
      __builtin_prefetch(reinterpret_cast<const char*>(codes) + 2048 + quad * 32);
      const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + quad * 32));
      __m256i first = _mm256_and_si256(both, nibble);
      __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
      if constexpr (kE2m1) {
        first = _mm256_shuffle_epi8(steps, first);
        second = _mm256_shuffle_epi8(steps, second);
      }
      MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
        const __m256i input = four_inputs(x + r * x_stride + quad * 4);
        add_words(low[r], _mm256_maddubs_epi16(first, input));
        add_words(high[r], _mm256_maddubs_epi16(second, input));
      }
    }
  }

  /// Adds them to sums of 32 bits, or begins those.
  void add_to(IntLanes (&sums)[kRows], bool first) const {
    const __m256i ones = _mm256_set1_epi16(1);
    if (first) {
      MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
        sums[r].low = _mm256_madd_epi16(low[r], ones);
        sums[r].high = _mm256_madd_epi16(high[r], ones);
      }
    } else {
      MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
        sums[r].low = _mm256_add_epi32(sums[r].low, _mm256_madd_epi16(low[r], ones));
        sums[r].high = _mm256_add_epi32(sums[r].high, _mm256_madd_epi16(high[r], ones));
      }
    }
  }
};

/// The unsigned operand is the weight's magnitude, so the input takes the weight's sign. Two products are at most
/// 2 * 128 * 127, which 16 bits hold.
template <int kRows>
MILLRACE_INLINE void multiply_bytes(const std::byte* codes, const InputBlocks<kRows>& inputs, IntLanes (&sums)[kRows]) {
  const __m256i ones = _mm256_set1_epi16(1);
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) sums[r].low = sums[r].high = _mm256_setzero_si256();
  for (std::int64_t quad = 0; quad < inputs.count / 4; ++quad) {
    const auto* w = reinterpret_cast<const __m256i*>(codes + quad * 64);
    __builtin_prefetch(reinterpret_cast<const char*>(w) + 2048);
    const __m256i low = _mm256_loadu_si256(w), high = _mm256_loadu_si256(w + 1);
    const __m256i low_size = _mm256_abs_epi8(low), high_size = _mm256_abs_epi8(high);
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      const __m256i input = four_inputs(inputs.codes + r * inputs.stride + quad * 4);
      const __m256i a = _mm256_maddubs_epi16(low_size, _mm256_sign_epi8(input, low));
      const __m256i b = _mm256_maddubs_epi16(high_size, _mm256_sign_epi8(input, high));
      sums[r].low = _mm256_add_epi32(sums[r].low, _mm256_madd_epi16(a, ones));
      sums[r].high = _mm256_add_epi32(sums[r].high, _mm256_madd_epi16(b, ones));
      keep_in_register(sums[r].low);
      keep_in_register(sums[r].high);
    }
  }
}

/// `begin` begins the sums of the block of which it is told the first input.
template <int kRows, bool kE2m1, typename Begin>
MILLRACE_INLINE void multiply_blocks(const std::byte* codes, const InputBlocks<kRows>& inputs, const Begin& begin,
                                     IntLanes (&sums)[kRows]) {
  BlockSums<kRows> block;
  for (std::int64_t first = 0; first < inputs.count; first += kIntegerBlock) {
    begin(block, first);
    if (kE2m1 && inputs.count - first < kIntegerBlock) {
      block.template take<kE2m1, kInputBlock / 4>(codes + first * 8, inputs.codes + first, inputs.stride);
    } else {
      block.template take<kE2m1, kIntegerBlock / 4>(codes + first * 8, inputs.codes + first, inputs.stride);
    }
    block.add_to(sums, first == 0);
  }
}

template <int kRows, CodeKind kKind>
MILLRACE_INLINE void multiply_group(const std::byte* codes, const InputBlocks<kRows>& inputs, IntLanes (&sums)[kRows]) {
  if constexpr (kKind == CodeKind::int8) {
    multiply_bytes(codes, inputs, sums);
  } else {
    multiply_blocks<kRows, kKind == CodeKind::e2m1>(
        codes, inputs, [](BlockSums<kRows>& block, std::int64_t /*first*/) { block.begin(); }, sums);
  }
}

template <int kRows, CodeKind kKind>
MILLRACE_INLINE void multiply_group(const std::byte* codes, const InputBlocks<kRows>& inputs, const Zeros& zeros,
                                    IntLanes (&sums)[kRows]) {
  // Both sums of an output are less their own inputs' zeros.
  const auto less = [](__m256i zero) {
    return _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_or_si256(zero, _mm256_slli_epi32(zero, 16)));
  };
  const Zeros off{less(zeros.low), less(zeros.high)};
  multiply_blocks<kRows, kKind == CodeKind::e2m1>(
      codes, inputs,
      [&](BlockSums<kRows>& block, std::int64_t first) {
        block.begin(off, inputs.sums + first / kInputBlock, inputs.sums_stride, inputs.count - first > kInputBlock);
      },
      sums);
}

/// For the measure of what is possible (limits.h): bytes that are multiplied and summed in 16 bits.
std::int64_t multiply_add_bytes(std::int64_t rounds, float* sink) {
  constexpr int kChains = 12;
  __m256i chains[kChains];
  MILLRACE_UNROLL for (int i = 0; i < kChains; ++i) chains[i] = _mm256_set1_epi8(static_cast<char>(i));
  const __m256i factor = _mm256_set1_epi8(3);
  for (std::int64_t round = 0; round < rounds; ++round) {
    MILLRACE_UNROLL for (int i = 0; i < kChains; ++i) {
      add_words(chains[i], _mm256_maddubs_epi16(chains[i], factor));
    }
  }
  __m256i all = chains[0];
  MILLRACE_UNROLL for (int i = 1; i < kChains; ++i) all = _mm256_add_epi16(all, chains[i]);
  *sink = static_cast<float>(_mm256_extract_epi16(all, 0));
  return rounds * kChains * 32 * 2;
}
