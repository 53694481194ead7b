// Products of bfloat16 by the instruction that adds two of them to a float (AVX512_BF16). Included inside an anonymous
// namespace (see kernel_table.h), after pairs.h.
//
// An output has one accumulator that takes its pairs in ascending order, whatever the tile, the block or the task;
// within a pair, and for subnormal numbers, which count as zero, the instruction has its own way.

constexpr int kPairRows = 6, kPairPanels = 4;  // of a tile

/// Inputs of some panels, whose sums so far are in memory.
struct PairBlock {
  const std::uint16_t* x = nullptr;  // [rows][x_stride]
  std::int64_t x_stride = 0;
  const std::byte* w[kPairPanels] = {};
  std::int64_t count = 0;                    // inputs
  bool begin = false;                        // sums start from zero
  float (*sums)[kPairPanels][16] = nullptr;  // [rows]
};

template <int kRows, int kPanels>
inline void pair_tile(const PairBlock& a, std::int64_t row) {
  constexpr std::int64_t kAheadBytes = 2048;
  const std::uint16_t* const x = a.x + row * a.x_stride;
  Lanes sum[kRows][kPanels];
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) {
      sum[r][p] = a.begin ? broadcast(0.0f) : load(a.sums[row + r][p]);
    }
  }
  for (std::int64_t k = 0; k < a.count; k += 2) {
    __m512i weights[kPanels];
    MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) {
      weights[p] = _mm512_loadu_si512(a.w[p] + k * 32);
      if constexpr (kRows <= 2) __builtin_prefetch(a.w[p] + k * 32 + kAheadBytes);
    }
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      std::int32_t pair;
      __builtin_memcpy(&pair, x + r * a.x_stride + k, sizeof pair);
      const __m512i inputs = _mm512_set1_epi32(pair);
      MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) {
        sum[r][p].all = _mm512_dpbf16_ps(sum[r][p].all, (__m512bh)inputs, (__m512bh)weights[p]);
      }
    }
  }
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) store(a.sums[row + r][p], sum[r][p]);
  }
}

/// `rows` of at most kRows rows, `panels` of at most kPanels panels.
template <int kRows, int kPanels>
inline void pair_rows(const PairBlock& a, std::int64_t row, std::int64_t rows, std::int64_t panels) {
  if constexpr (kRows > 0 && kPanels > 0) {
    if (rows < kRows) return pair_rows<kRows - 1, kPanels>(a, row, rows, panels);
    if (panels < kPanels) return pair_rows<kRows, kPanels - 1>(a, row, rows, panels);
    pair_tile<kRows, kPanels>(a, row);
  }
}

void multiply_pairs_by_dots(const PairTask& a) {
  const PackedSegment& weight = a.weight;
  const bool e4m3 = weight.format == QuantFormat::f8_e4m3;
  const std::int64_t cols = padded_cols(weight), bytes = e4m3 ? 16 : 32;  // of an input of a panel
  const std::int64_t span = e4m3 || a.rows > kPairRows ? kPairSpan : cols;
  alignas(64) std::byte space[kPairPanels][kPairSpan * 32];
  alignas(64) float sums[kMatmulRows][kPairPanels][16];
  for (std::int64_t panel = a.first_panel; panel < a.end_panel; panel += kPairPanels) {
    const std::int64_t left = a.end_panel - panel, panels = left < kPairPanels ? left : kPairPanels;
    if (a.resume) {
      for (std::int64_t p = 0; p < panels; ++p) {
        load_rows(target_of(a, panel + p), [&](std::int64_t r, Lanes sum) { store(sums[r][p], sum); });
      }
    }
    for (std::int64_t first = 0; first < cols; first += span) {
      PairBlock block{.x = a.x + first,
                      .x_stride = a.x_stride,
                      .count = cols - first < span ? cols - first : span,
                      .begin = first == 0 && !a.resume,
                      .sums = sums};
      for (std::int64_t p = 0; p < panels; ++p) {
        const std::byte* const stored = weight.data + ((panel + p) * cols + first) * bytes;
        block.w[p] = e4m3 ? space[p] : stored;
        if (!e4m3) continue;
        for (std::int64_t k = 0; k < block.count; k += 4) pair_up_e4m3(stored + k * bytes, space[p] + k * 32);
      }
      for (std::int64_t row = 0; row < a.rows; row += kPairRows) {
        const std::int64_t rows = a.rows - row < kPairRows ? a.rows - row : kPairRows;
        pair_rows<kPairRows, kPairPanels>(block, row, rows, panels);
      }
    }
    for (std::int64_t p = 0; p < panels; ++p) {
      const PanelTarget target = target_of(a, panel + p);
      if (weight.row_scales == nullptr) {
        store_rows(target, [&](std::int64_t r) { return load(sums[r][p]); });
        continue;
      }
      const Lanes scales = load(weight.row_scales + (panel + p) * 16);
      store_rows(target, [&](std::int64_t r) { return mul(load(sums[r][p]), mul(scales, broadcast(a.x_scales[r]))); });
    }
  }
}

/// For the measure of what is possible (limits.h).
std::int64_t multiply_add_dots(std::int64_t rounds, float* sink) {
  constexpr int kChains = 12;
  const __m512i ones = _mm512_set1_epi32(0x3f803f80);
  Lanes chains[kChains];
  MILLRACE_UNROLL for (int i = 0; i < kChains; ++i) chains[i] = broadcast(static_cast<float>(i));
  for (std::int64_t round = 0; round < rounds; ++round) {
    MILLRACE_UNROLL for (int i = 0; i < kChains; ++i) {
      chains[i].all = _mm512_dpbf16_ps(chains[i].all, (__m512bh)ones, (__m512bh)ones);
      keep_in_register(chains[i]);
    }
  }
  *sink = 0.0f;
  MILLRACE_UNROLL for (int i = 0; i < kChains; ++i)* sink += reduce_add(chains[i]);
  return rounds * kChains * 32 * 2;
}
