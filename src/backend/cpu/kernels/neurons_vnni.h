// Products of codes with single neurons by the instruction that adds four products of bytes at once (AVX-512 VNNI).
// Included inside an anonymous namespace (see kernel_table.h).
//
// The instruction takes codes without sign: 128 is added to those of weights, and 128 times the sum of the inputs taken
// off again. Sums may wrap on the way; what is left at the end fits.

constexpr int kCodeRows = 4;     // that meet the weights together
constexpr int kCodeNeurons = 4;  // side by side

MILLRACE_INLINE __m512i raised_line(const std::byte* codes) {
  return _mm512_xor_si512(_mm512_loadu_si512(codes), _mm512_set1_epi8(-128));
}

/// kRows rows and kCount neurons. While they are read, those behind them are asked for.
template <int kRows, int kCount>
MILLRACE_INLINE void code_products(const NeuronCodeProductTask& a, std::int64_t row, std::int64_t first, bool ahead,
                                   const std::int32_t* totals) {
  __m512i sum[kRows][kCount];
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    MILLRACE_UNROLL for (int i = 0; i < kCount; ++i) sum[r][i] = _mm512_setzero_si512();
  }
  const std::int8_t* const x = a.x + row * a.x_stride;
  for (std::int64_t k = 0; k < a.cols; k += 64) {
    __m512i value[kRows];
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) value[r] = _mm512_loadu_si512(x + r * a.x_stride + k);
    MILLRACE_UNROLL for (int i = 0; i < kCount; ++i) {
      if (ahead) __builtin_prefetch(a.weights[first + kCount + i] + k, 0, 2);
      const __m512i weight = raised_line(a.weights[first + i] + k);
      MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) sum[r][i] = _mm512_dpbusd_epi32(sum[r][i], weight, value[r]);
    }
  }
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    MILLRACE_UNROLL for (int i = 0; i < kCount; ++i) {
      const auto wrapped = static_cast<std::uint32_t>(_mm512_reduce_add_epi32(sum[r][i]));
      a.out[(row + r) * a.out_stride + first + i] =
          static_cast<std::int32_t>(wrapped - 128u * static_cast<std::uint32_t>(totals[r]));
    }
  }
}

template <int kRows>
inline void code_rows(const NeuronCodeProductTask& a, std::int64_t row) {
  std::int32_t totals[kRows];
  for (int r = 0; r < kRows; ++r) {
    __m512i sum = _mm512_setzero_si512();
    for (std::int64_t k = 0; k < a.cols; k += 64) {
      sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), _mm512_loadu_si512(a.x + (row + r) * a.x_stride + k));
    }
    totals[r] = _mm512_reduce_add_epi32(sum);
  }
  std::int64_t i = 0;
  for (; i + kCodeNeurons <= a.count; i += kCodeNeurons) {
    code_products<kRows, kCodeNeurons>(a, row, i, row == 0 && i + 2 * kCodeNeurons <= a.count, totals);
  }
  for (; i < a.count; ++i) code_products<kRows, 1>(a, row, i, false, totals);
}

void multiply_neuron_codes(const NeuronCodeProductTask& a) {
  std::int64_t row = 0;
  for (; row + kCodeRows <= a.rows; row += kCodeRows) code_rows<kCodeRows>(a, row);
  for (; row < a.rows; ++row) code_rows<1>(a, row);
}

constexpr std::int64_t kCodeChunk = 16;  // neurons that all outputs meet before the next come

/// What rows have of a task's outputs: of every 64 four registers, as weights come out of interleaving.
struct CodeSums {
  alignas(64) std::int32_t of[kCodeRows][NeuronCodeSumTask::kMostOutputs];
};

/// Neurons [first, end), and kLines * 64 outputs from `place` on.
template <int kRows, int kLines>
MILLRACE_INLINE void add_code_lines(const NeuronCodeSumTask& a, std::int64_t row, std::int64_t first, std::int64_t end,
                                    std::int64_t place, CodeSums& sums) {
  __m512i sum[kRows][4 * kLines];
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    MILLRACE_UNROLL for (int q = 0; q < 4 * kLines; ++q) sum[r][q] = _mm512_load_si512(sums.of[r] + place + 16 * q);
  }
  const std::int64_t offset = a.first + place;
  const std::int8_t* const h = a.h + row * a.h_stride;
  for (std::int64_t i = first; i < end; i += 4) {
    const std::int64_t left = end - i < 4 ? end - i : 4;
    const std::byte* neurons[4];
    MILLRACE_UNROLL for (int k = 0; k < 4; ++k) {
      const std::int64_t neuron = k < left ? i + k : i;
      neurons[k] = a.weights[neuron] + offset;
      if (row > 0 || neuron + kCodeChunk >= a.count) continue;
      const std::byte* const next = a.weights[neuron + kCodeChunk] + offset;
      MILLRACE_UNROLL for (int l = 0; l < kLines; ++l) __builtin_prefetch(next + 64 * l, 0, 2);
    }
    __m512i value[kRows];
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      std::int32_t word = 0;
      if (left == 4) {
        __builtin_memcpy(&word, h + r * a.h_stride + i, sizeof word);
      } else {
        __builtin_memcpy(&word, h + r * a.h_stride + i, static_cast<std::size_t>(left));
      }
      value[r] = _mm512_set1_epi32(word);
    }
    MILLRACE_UNROLL for (int l = 0; l < kLines; ++l) {
      __m512i line[4];
      MILLRACE_UNROLL for (int k = 0; k < 4; ++k) line[k] = raised_line(neurons[k] + 64 * l);
      const __m512i low = _mm512_unpacklo_epi8(line[0], line[1]), high = _mm512_unpackhi_epi8(line[0], line[1]);
      const __m512i more_low = _mm512_unpacklo_epi8(line[2], line[3]),
                    more_high = _mm512_unpackhi_epi8(line[2], line[3]);
      const __m512i quads[4] = {_mm512_unpacklo_epi16(low, more_low), _mm512_unpackhi_epi16(low, more_low),
                                _mm512_unpacklo_epi16(high, more_high), _mm512_unpackhi_epi16(high, more_high)};
      MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
        MILLRACE_UNROLL for (int q = 0; q < 4; ++q) {
          sum[r][4 * l + q] = _mm512_dpbusd_epi32(sum[r][4 * l + q], quads[q], value[r]);
        }
      }
    }
  }
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    MILLRACE_UNROLL for (int q = 0; q < 4 * kLines; ++q) _mm512_store_si512(sums.of[r] + place + 16 * q, sum[r][q]);
  }
}

/// Adds the sums of a row to `out`, in order: of register q the 128-bit lane l has outputs 16 l + 4 q to 16 l + 4 q
/// + 3.
inline void store_code_sums(const NeuronCodeSumTask& a, std::int64_t row, const std::int32_t* sums) {
  std::int32_t* const out = a.out + row * a.out_stride;
  for (std::int64_t place = 0; place < a.outputs; place += 64) {
    const std::int64_t left = a.outputs - place;
    __m512i q[4];
    MILLRACE_UNROLL for (int i = 0; i < 4; ++i) q[i] = _mm512_load_si512(sums + place + 16 * i);
    const __m512i low = _mm512_shuffle_i32x4(q[0], q[1], 0x44), high = _mm512_shuffle_i32x4(q[0], q[1], 0xee);
    const __m512i more_low = _mm512_shuffle_i32x4(q[2], q[3], 0x44), more_high = _mm512_shuffle_i32x4(q[2], q[3], 0xee);
    const __m512i outputs[4] = {_mm512_shuffle_i32x4(low, more_low, 0x88), _mm512_shuffle_i32x4(low, more_low, 0xdd),
                                _mm512_shuffle_i32x4(high, more_high, 0x88),
                                _mm512_shuffle_i32x4(high, more_high, 0xdd)};
    MILLRACE_UNROLL for (int l = 0; l < 4; ++l) {
      const std::int64_t lanes = left - 16 * l < 0 ? 0 : left - 16 * l < 16 ? left - 16 * l : 16;
      const auto there = static_cast<__mmask16>((1u << lanes) - 1u);
      std::int32_t* const target = out + place + 16 * l;
      _mm512_mask_storeu_epi32(target, there, _mm512_add_epi32(_mm512_maskz_loadu_epi32(there, target), outputs[l]));
    }
  }
}

template <int kRows>
inline void add_code_rows(const NeuronCodeSumTask& a, std::int64_t row) {
  CodeSums sums;
  for (int r = 0; r < kRows; ++r) {
    std::uint32_t total = 0;
    for (std::int64_t i = 0; i < a.count; ++i) total += static_cast<std::uint32_t>(a.h[(row + r) * a.h_stride + i]);
    const __m512i raised = _mm512_set1_epi32(static_cast<std::int32_t>(0u - 128u * total));
    for (std::int64_t place = 0; place < (a.outputs + 63) / 64 * 64; place += 16) {
      _mm512_store_si512(sums.of[r] + place, raised);
    }
  }
  for (std::int64_t first = 0; first < a.count; first += kCodeChunk) {
    const std::int64_t end = first + kCodeChunk < a.count ? first + kCodeChunk : a.count;
    constexpr int kLines = kRows == 1 ? 4 : 1;
    std::int64_t place = 0;
    for (; place + 64 * kLines <= a.outputs; place += 64 * kLines) {
      add_code_lines<kRows, kLines>(a, row, first, end, place, sums);
    }
    for (; place < a.outputs; place += 64) add_code_lines<kRows, 1>(a, row, first, end, place, sums);
  }
  for (int r = 0; r < kRows; ++r) store_code_sums(a, row + r, sums.of[r]);
}

void add_neuron_codes(const NeuronCodeSumTask& a) {
  std::int64_t row = 0;
  for (; row + kCodeRows <= a.rows; row += kCodeRows) add_code_rows<kCodeRows>(a, row);
  for (; row < a.rows; ++row) add_code_rows<1>(a, row);
}
