// Products with single neurons, whose weights lie side by side. Included inside an anonymous namespace (see
// kernel_table.h), after the element types and Lanes of the level.

constexpr int kNeuronSums = 2;  // Lanes that a product's sums take turns in

/// kRows rows and kCount neurons. While they are read, those behind them are asked for.
template <int kRows, int kCount, typename Element>
MILLRACE_INLINE void neuron_products(const NeuronProductTask& a, std::int64_t row, std::int64_t first, bool ahead) {
  constexpr std::int64_t kStep = 16 * kNeuronSums;
  Lanes sum[kRows][kCount][kNeuronSums];
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    MILLRACE_UNROLL for (int i = 0; i < kCount; ++i) {
      MILLRACE_UNROLL for (int s = 0; s < kNeuronSums; ++s) sum[r][i][s] = broadcast(0.0f);
    }
  }
  const float* const x = a.x + row * a.x_stride;
  for (std::int64_t k = 0; k < a.cols; k += kStep) {
    Lanes value[kRows][kNeuronSums];
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      MILLRACE_UNROLL for (int s = 0; s < kNeuronSums; ++s) value[r][s] = load(x + r * a.x_stride + k + 16 * s);
    }
    MILLRACE_UNROLL for (int i = 0; i < kCount; ++i) {
      const auto* const weights = reinterpret_cast<const Element*>(a.weights[first + i]) + k;
      // A line for each that is read; of small elements some are asked for twice.
      if (ahead) __builtin_prefetch(reinterpret_cast<const Element*>(a.weights[first + kCount + i]) + k, 0, 2);
      MILLRACE_UNROLL for (int s = 0; s < kNeuronSums; ++s) {
        const Lanes weight = load(weights + 16 * s);
        MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) sum[r][i][s] = fma(value[r][s], weight, sum[r][i][s]);
      }
    }
  }
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    MILLRACE_UNROLL for (int i = 0; i < kCount; ++i) {
      a.out[(row + r) * a.out_stride + first + i] = reduce_add(add(sum[r][i][0], sum[r][i][1]));
    }
  }
}

/// As many neurons at a time as the level has registers for.
constexpr int kNeuronsOfRow = kAccumulators >= 16 ? 4 : kAccumulators >= 6 ? 2 : 1;
constexpr int kNeuronRows = kAccumulators >= 16 ? 4 : 1;

template <int kRows, int kCount, typename Element>
inline void neuron_rows(const NeuronProductTask& a, std::int64_t row) {
  std::int64_t i = 0;
  for (; i + kCount <= a.count; i += kCount) {
    neuron_products<kRows, kCount, Element>(a, row, i, row == 0 && i + 2 * kCount <= a.count);
  }
  for (; i < a.count; ++i) neuron_products<kRows, 1, Element>(a, row, i, false);
}

template <typename Element>
void multiply_neurons_of(const NeuronProductTask& a) {
  std::int64_t row = 0;
  if constexpr (kNeuronRows > 1) {
    for (; row + kNeuronRows <= a.rows; row += kNeuronRows) neuron_rows<kNeuronRows, 2, Element>(a, row);
  }
  for (; row < a.rows; ++row) neuron_rows<1, kNeuronsOfRow, Element>(a, row);
}

void multiply_neurons(const NeuronProductTask& a) {
  switch (a.element) {
    case NeuronElement::f32:
      return multiply_neurons_of<float>(a);
    case NeuronElement::f16:
      return multiply_neurons_of<Half>(a);
    case NeuronElement::bf16:
      return multiply_neurons_of<Bf16>(a);
    case NeuronElement::int8:
      return;  // multiply_neuron_codes
  }
}

constexpr std::int64_t kNeuronChunk = 16;  // neurons that all outputs meet before the next come

/// Neurons [first, end), kRows rows, and kCount * 16 outputs from `place` on; `lanes` of the last are there.
template <int kRows, int kCount, typename Element>
MILLRACE_INLINE void neuron_sums(const NeuronSumTask& a, std::int64_t row, std::int64_t first, std::int64_t end,
                                 std::int64_t place, std::int64_t lanes) {
  Lanes sum[kRows][kCount];
  float* const out = a.out + row * a.out_stride + place;
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    MILLRACE_UNROLL for (int c = 0; c < kCount; ++c) {
      sum[r][c] = load_part(out + r * a.out_stride + 16 * c, c + 1 == kCount ? lanes : 16);
    }
  }
  const float* const h = a.h + row * a.h_stride;
  const std::int64_t offset = (a.first + place) * static_cast<std::int64_t>(sizeof(Element));
  const bool ahead = row == 0;
  for (std::int64_t i = first; i < end; ++i) {
    const auto* const weights = reinterpret_cast<const Element*>(a.weights[i] + offset);
    if (ahead && i + kNeuronChunk < a.count) {
      constexpr std::int64_t kBytes = 16 * kCount * static_cast<std::int64_t>(sizeof(Element));
      const std::byte* const next = a.weights[i + kNeuronChunk] + offset;
      MILLRACE_UNROLL for (std::int64_t line = 0; line < kBytes; line += 64) __builtin_prefetch(next + line, 0, 2);
    }
    Lanes weight[kCount];
    MILLRACE_UNROLL for (int c = 0; c < kCount; ++c) weight[c] = load(weights + 16 * c);
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      const Lanes value = broadcast(h[r * a.h_stride + i]);
      MILLRACE_UNROLL for (int c = 0; c < kCount; ++c) sum[r][c] = fma(value, weight[c], sum[r][c]);
    }
  }
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    MILLRACE_UNROLL for (int c = 0; c < kCount; ++c) {
      store_part(out + r * a.out_stride + 16 * c, sum[r][c], c + 1 == kCount ? lanes : 16);
    }
  }
}

template <int kRows, int kCount, typename Element>
inline void neuron_sum_rows(const NeuronSumTask& a, std::int64_t row, std::int64_t first, std::int64_t end) {
  std::int64_t o = 0;
  for (; o + 16 * kCount <= a.outputs; o += 16 * kCount) {
    neuron_sums<kRows, kCount, Element>(a, row, first, end, o, 16);
  }
  for (; o < a.outputs; o += 16) {
    neuron_sums<kRows, 1, Element>(a, row, first, end, o, a.outputs - o < 16 ? a.outputs - o : 16);
  }
}

template <typename Element>
void add_neurons_of(const NeuronSumTask& a) {
  constexpr int kWide = kAccumulators >= 16 ? 8 : kAccumulators >= 6 ? 4 : 2;
  for (std::int64_t first = 0; first < a.count; first += kNeuronChunk) {
    const std::int64_t end = first + kNeuronChunk < a.count ? first + kNeuronChunk : a.count;
    std::int64_t row = 0;
    if constexpr (kNeuronRows > 1) {
      for (; row + kNeuronRows <= a.rows; row += kNeuronRows) {
        neuron_sum_rows<kNeuronRows, 4, Element>(a, row, first, end);
      }
    }
    for (; row < a.rows; ++row) neuron_sum_rows<1, kWide, Element>(a, row, first, end);
  }
}

void add_neurons(const NeuronSumTask& a) {
  switch (a.element) {
    case NeuronElement::f32:
      return add_neurons_of<float>(a);
    case NeuronElement::f16:
      return add_neurons_of<Half>(a);
    case NeuronElement::bf16:
      return add_neurons_of<Bf16>(a);
    case NeuronElement::int8:
      return;  // add_neuron_codes
  }
}

// Products of codes, whose sums are exact: their order does not matter. Two products of codes fit into 16 bits.

typedef std::int8_t CodeBytes __attribute__((vector_size(16)));
typedef std::int16_t CodeWords __attribute__((vector_size(32)));
typedef std::int32_t CodeSums __attribute__((vector_size(64)));

MILLRACE_INLINE void load_codes(const std::int8_t* codes, CodeWords& words) {
  CodeBytes bytes;
  __builtin_memcpy(&bytes, codes, sizeof bytes);
  words = __builtin_convertvector(bytes, CodeWords);
}

void multiply_neuron_codes(const NeuronCodeProductTask& a) {
  for (std::int64_t i = 0; i < a.count; ++i) {
    const auto* const w = reinterpret_cast<const std::int8_t*>(a.weights[i]);
    for (std::int64_t r = 0; r < a.rows; ++r) {
      const std::int8_t* const x = a.x + r * a.x_stride;
      CodeSums sums = {};
      for (std::int64_t k = 0; k < a.cols; k += 32) {
        CodeWords inputs[2], weights[2];
        for (int half = 0; half < 2; ++half) {
          load_codes(x + k + 16 * half, inputs[half]);
          load_codes(w + k + 16 * half, weights[half]);
        }
        sums += __builtin_convertvector(inputs[0] * weights[0] + inputs[1] * weights[1], CodeSums);
      }
      std::int32_t sum = 0;
      for (int lane = 0; lane < 16; ++lane) sum += sums[lane];
      a.out[r * a.out_stride + i] = sum;
    }
  }
}

/// Four neurons at a time, so that sums are loaded and stored for each fourth. Outputs are padded in weights alone.
void add_neuron_codes(const NeuronCodeSumTask& a) {
  for (std::int64_t i = 0; i < a.count; i += 4) {
    const std::int64_t count = a.count - i < 4 ? a.count - i : 4;
    const std::int8_t* w[4];
    for (std::int64_t k = 0; k < 4; ++k) {
      w[k] = reinterpret_cast<const std::int8_t*>(a.weights[k < count ? i + k : i]) + a.first;
    }
    for (std::int64_t r = 0; r < a.rows; ++r) {
      std::int32_t* const out = a.out + r * a.out_stride;
      std::int16_t h[4] = {};
      for (std::int64_t k = 0; k < count; ++k) h[k] = static_cast<std::int16_t>(+a.h[r * a.h_stride + i + k]);
      for (std::int64_t o = 0; o < a.outputs; o += 16) {
        CodeWords weights[4];
        for (int k = 0; k < 4; ++k) load_codes(w[k] + o, weights[k]);
        CodeSums sums = {};
        const std::int64_t left = a.outputs - o;
        const std::size_t bytes = left < 16 ? static_cast<std::size_t>(left) * sizeof *out : sizeof sums;
        __builtin_memcpy(&sums, out + o, bytes);
        sums += __builtin_convertvector(weights[0] * h[0] + weights[1] * h[1], CodeSums) +
                __builtin_convertvector(weights[2] * h[2] + weights[3] * h[3], CodeSums);
        __builtin_memcpy(out + o, &sums, bytes);
      }
    }
  }
}
