// Matrix products with outputs in lanes. Included inside an anonymous namespace (see kernel_table.h).
//
// Each output has one accumulator that takes its products in ascending k, whatever the tile, the block or the task, so
// the number of rows and the blocking never show in the result. An accumulator that leaves the registers between blocks
// is kept in `out` as the float that it is.

/// A product of `rows` rows x with panels of weights w, added to `out` or, if `first`, starting from zero.
template <typename Element>
struct Product {
  const Element* w;  // panel p's weights of input k: 16 elements at w + p * panel_stride + k * step
  std::int64_t panel_stride;
  std::int64_t step;
  std::int64_t panels;
  std::int64_t last_lanes;  // outputs in the last panel that exist, 1 to 16
  std::int64_t count;       // inputs k
  const float* x;
  std::int64_t x_stride;
  std::int64_t rows;
  float* out;
  std::int64_t out_stride;
  bool first;
  const float* scales;    // of the outputs, multiplied with the sum at its end; null: not
  const float* x_scales;  // [rows], multiplied with those before; null: not
  float unit;             // of the weights, taken at the end too: a power of two
  const float* bias;      // added after the sum; null: not
};

constexpr std::int64_t kPrefetch = 64;  // inputs ahead

template <int kRows, int kPanels, typename Element>
inline void multiply_tile(const Product<Element>& a, std::int64_t row, std::int64_t panel) {
  const Element* w = a.w + panel * a.panel_stride;
  const float* x = a.x + row * a.x_stride;
  float* out = a.out + row * a.out_stride + panel * 16;
  const std::int64_t last = panel + kPanels == a.panels ? a.last_lanes : 16;

  Lanes sum[kRows][kPanels];
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) {
      sum[r][p] = broadcast(0.0f);
      if (!a.first) sum[r][p] = load_part(out + r * a.out_stride + p * 16, p + 1 < kPanels ? 16 : last);
    }
  }
  for (std::int64_t k = 0; k < a.count; ++k) {
    Lanes weight[kPanels];
    MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) {
      weight[p] = load(w + p * a.panel_stride + k * a.step);
      // With many streams the processor's own prefetchers keep up; with one or two they do not.
      if constexpr (kPanels <= 2) __builtin_prefetch(w + p * a.panel_stride + (k + kPrefetch) * a.step);
    }
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      const Lanes value = broadcast(x[r * a.x_stride + k]);
      MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) sum[r][p] = fma(value, weight[p], sum[r][p]);
    }
  }
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) {
      const std::int64_t lanes = p + 1 < kPanels ? 16 : last;
      if (a.scales != nullptr) {
        Lanes scale = load(a.scales + (panel + p) * 16);
        if (a.x_scales != nullptr) scale = mul(scale, broadcast(a.x_scales[row + r]));
        sum[r][p] = mul(mul(sum[r][p], broadcast(a.unit)), scale);
      }
      if (a.bias != nullptr) sum[r][p] = add(sum[r][p], load_part(a.bias + (panel + p) * 16, lanes));
      store_part(out + r * a.out_stride + p * 16, sum[r][p], lanes);
    }
  }
}

/// Panels that a tile of `rows` rows takes side by side: as many as the registers hold, a power of two.
constexpr int tile_panels(int rows) {
  int panels = 1;
  while (2 * panels * rows <= kAccumulators && 2 * panels <= kTilePanels) panels *= 2;
  return panels;
}

template <int kRows, int kPanels, typename Element>
inline void multiply_panels(const Product<Element>& a, std::int64_t row, std::int64_t panel, std::int64_t end) {
  if constexpr (kRows <= kTileRows) {
    for (; panel + kPanels <= end; panel += kPanels) multiply_tile<kRows, kPanels>(a, row, panel);
    if constexpr (kPanels > 1) multiply_panels<kRows, kPanels / 2>(a, row, panel, end);
  }
}

/// Rows and panels in tiles; a group of panels that is small enough for the first-level cache meets all rows in turn.
template <typename Element>
void multiply(const Product<Element>& a) {
  const std::int64_t tiles = (a.rows + kTileRows - 1) / kTileRows;
  const std::int64_t group = a.rows <= kTileRows ? a.panels : tile_panels(kTileRows);
  for (std::int64_t panel = 0; panel < a.panels; panel += group) {
    const std::int64_t end = panel + group < a.panels ? panel + group : a.panels;
    std::int64_t row = 0;
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
      const std::int64_t rows = a.rows / tiles + (tile < a.rows % tiles ? 1 : 0);  // tiles of about equal height
      switch (rows) {
        case 1:
          multiply_panels<1, tile_panels(1)>(a, row, panel, end);
          break;
        case 2:
          multiply_panels<2, tile_panels(2)>(a, row, panel, end);
          break;
        case 3:
          multiply_panels<3, tile_panels(3)>(a, row, panel, end);
          break;
        case 4:
          multiply_panels<4, tile_panels(4)>(a, row, panel, end);
          break;
        case 5:
          multiply_panels<5, tile_panels(5)>(a, row, panel, end);
          break;
        default:
          multiply_panels<6, tile_panels(6)>(a, row, panel, end);
          break;
      }
      row += rows;
    }
  }
}

/// Weights [count][16] of a panel from input k on, as floats.
template <typename Element>
inline void widen_panel(const Element* source, std::int64_t count, float* target) {
  for (std::int64_t k = 0; k < count; ++k) store(target + k * 16, load(source + k * 16));
}

/// The same from rows of blocks. Lanes beyond the last row repeat it: they are computed and never stored.
inline void decode_panel(const PackedSegment& weight, const QuantFormatInfo& info, std::int64_t panel, std::int64_t k,
                         std::int64_t count, float* decoded, float* target) {
  const auto elements = static_cast<std::int64_t>(info.block_elements);
  const auto bytes = static_cast<std::int64_t>(info.block_bytes);
  const float* rows[16];
  for (std::int64_t r = 0; r < 16; ++r) {
    const std::int64_t row = panel * 16 + r;
    rows[r] = decoded + (row < weight.rows ? r : weight.rows - 1 - panel * 16) * kMatmulBlock;
    if (row >= weight.rows) continue;
    const std::byte* source = weight.data + row * (weight.cols / elements * bytes) + k / elements * bytes;
    dequantize(weight.format, source, decoded + r * kMatmulBlock, static_cast<std::size_t>(count));
  }
  for (std::int64_t c = 0; c < count; c += 16) transpose(rows, c, target + c * 16);
}

/// A block of inputs rounded to bfloat16: [rows][count].
inline void round_block(const float* x, std::int64_t x_stride, std::int64_t rows, std::int64_t count, float* target) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t k = 0; k < count; k += 16) {
      const std::int64_t lanes = count - k < 16 ? count - k : 16;
      store_part(target + r * count + k, round_to_bf16(load_part(x + r * x_stride + k, lanes)), lanes);
    }
  }
}

/// Panels [panel, panel + panels) times the inputs from k on: x [rows, x_stride], `count` of them.
template <typename Element>
inline Product<Element> panel_product(const MatmulTask& task, std::int64_t panel, std::int64_t panels, std::int64_t k,
                                      std::int64_t count, const float* x, std::int64_t x_stride) {
  const std::int64_t all_panels = (task.weight.rows + 15) / 16;
  Product<Element> product{};
  product.step = 16;
  product.panels = panels;
  product.last_lanes = panel + panels == all_panels ? task.weight.rows - 16 * (all_panels - 1) : 16;
  product.count = count;
  product.x = x;
  product.x_stride = x_stride;
  product.rows = task.rows;
  product.out = task.out + panel * 16;
  product.out_stride = task.out_stride;
  product.first = k == 0 && !task.resume;
  const PackedSegment& weight = task.weight;
  const float* scales = weight.format == QuantFormat::codes ? weight.codes->row_scales : weight.row_scales;
  if (k + count == weight.cols && scales != nullptr) {
    product.scales = scales + panel * 16;
    product.x_scales = task.x_scales;
    product.unit = weight.format == QuantFormat::f8_e4m3 ? kE4m3Unit : 1.0f;
  }
  product.bias = k + count == task.weight.cols && task.bias != nullptr ? task.bias + panel * 16 : nullptr;
  return product;
}

/// Straight from the packed panels: each tile of rows widens the weights anew, in the shadow of its products.
template <typename Element>
void multiply_stored(const MatmulTask& task, std::int64_t k, std::int64_t count, const float* x,
                     std::int64_t x_stride) {
  // Few rows: all of a panel in one go, at memory's pace. Many: in pieces that stay in the first-level cache meanwhile.
  const bool few = task.rows <= kTileRows;
  const std::int64_t group = few ? task.end_panel - task.first_panel : tile_panels(kTileRows);
  const std::int64_t block = few ? count : kMatmulBlock;
  for (std::int64_t panel = task.first_panel; panel < task.end_panel; panel += group) {
    const std::int64_t panels = task.end_panel - panel < group ? task.end_panel - panel : group;
    for (std::int64_t b = 0; b < count; b += block) {
      const std::int64_t part = count - b < block ? count - b : block;
      Product<Element> product = panel_product<Element>(task, panel, panels, k + b, part, x + b, x_stride);
      product.w = reinterpret_cast<const Element*>(task.weight.data) + (panel * task.weight.cols + k + b) * 16;
      product.panel_stride = task.weight.cols * 16;
      multiply(product);
    }
  }
}

/// Turns a few panels at a time into floats first, for all rows.
void multiply_decoded(const MatmulTask& task, std::int64_t k, std::int64_t count, const float* x,
                      std::int64_t x_stride) {
  const PackedSegment& weight = task.weight;
  const QuantFormatInfo& info = format_info(weight.format);
  float* tile = task.scratch + kMatmulInputScratch;
  float* decoded = tile + kMatmulWeightScratch;
  // Few rows: enough panels for a tile of one row. Many: what a tile holds, so that it stays in the first-level cache.
  const bool few = task.rows <= kTileRows;
  const std::int64_t group = few ? tile_panels(1) : tile_panels(kTileRows);
  const bool codes = weight.format == QuantFormat::codes, grouped = weight.group_scales != nullptr;
  const std::int64_t block = few && (codes || grouped) ? kMatmulBlock / 4 : kMatmulBlock;  // then all panels of it stay
  for (std::int64_t panel = task.first_panel; panel < task.end_panel; panel += group) {
    const std::int64_t panels = task.end_panel - panel < group ? task.end_panel - panel : group;
    for (std::int64_t b = 0; b < count; b += block) {
      const std::int64_t part = count - b < block ? count - b : block, stride = (part + 3) / 4 * 4 * 16;
      for (std::int64_t p = 0; p < panels; ++p) {
        float* target = tile + p * stride;
        const std::int64_t element = ((panel + p) * weight.cols + k + b) * 16;
        if (codes) {
          widen_codes(*weight.codes, panel + p, k + b, part, target);
        } else if (grouped) {
          widen_e4m3(weight, panel + p, k + b, part, target);
        } else if (weight.format == QuantFormat::f8_e4m3) {
          widen_panel(reinterpret_cast<const E4m3*>(weight.data) + element, part, target);
        } else if (weight.format == QuantFormat::bf16) {
          widen_panel(reinterpret_cast<const Bf16*>(weight.data) + element, part, target);
        } else if (weight.format == QuantFormat::f16) {
          widen_panel(reinterpret_cast<const Half*>(weight.data) + element, part, target);
        } else {
          decode_panel(weight, info, panel + p, k + b, part, decoded, target);
        }
      }
      Product<float> product = panel_product<float>(task, panel, panels, k + b, part, x + b, x_stride);
      product.w = tile;
      product.panel_stride = stride;
      multiply(product);
    }
  }
}

void matmul(const MatmulTask& task) {
  const bool direct = kWidensCheaply || task.rows <= kTileRows;
  const std::int64_t cols = task.weight.cols;
  // As many inputs of all rows as the second-level cache holds beside the weights; usually all of them.
  std::int64_t block = kMatmulInputScratch / task.rows / kMatmulBlock * kMatmulBlock;
  if (block > cols) block = cols;
  for (std::int64_t k = 0; k < cols; k += block) {
    const std::int64_t count = cols - k < block ? cols - k : block;
    const float* x = task.x + k;
    std::int64_t x_stride = task.x_stride;
    if (task.round_inputs) {
      round_block(x, x_stride, task.rows, count, task.scratch);
      x = task.scratch;
      x_stride = count;
    }
    if (task.weight.format == QuantFormat::f32) {
      multiply_stored<float>(task, k, count, x, x_stride);
    } else if (task.weight.format == QuantFormat::f8_e4m3 && task.weight.group_scales == nullptr &&
               task.rows <= kTileRows) {
      multiply_stored<E4m3>(task, k, count, x, x_stride);
    } else if (task.weight.format == QuantFormat::bf16 && direct) {
      multiply_stored<Bf16>(task, k, count, x, x_stride);
    } else if (task.weight.format == QuantFormat::f16 && direct) {
      multiply_stored<Half>(task, k, count, x, x_stride);
    } else {
      multiply_decoded(task, k, count, x, x_stride);
    }
  }
}
