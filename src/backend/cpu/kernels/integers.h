// Matrix products of integer weights and 8-bit inputs. Included inside an anonymous namespace (see kernel_table.h).
//
// Sums within a group are exact, so how they are cut does not matter; groups follow each other in one float accumulator
// for each output, whatever the tile or the task.

inline Lanes group_scales(const PackedIntegers& weight, std::int64_t panel, std::int64_t groups, std::int64_t group) {
  if (weight.bits == 8) return load(weight.row_scales + panel * 16);
  return load(reinterpret_cast<const Half*>(weight.scales) + (panel * groups + group) * 16);
}

template <int kRows, int kBits>
inline void integer_tile(const IntegerTask& a, std::int64_t row, std::int64_t panel) {
  const PackedIntegers& weight = a.weight;
  const std::int64_t blocks = weight.padded_cols / kIntegerBlock;
  const std::int64_t groups = (blocks + weight.group_blocks - 1) / weight.group_blocks;
  constexpr std::int64_t kBlockBytes = kIntegerBlock * 16 * kBits / 8;
  const std::byte* codes = weight.codes + panel * blocks * kBlockBytes;
  const std::int8_t* x = a.x.codes + row * a.x.stride;
  Lanes total[kRows];
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) total[r] = broadcast(0.0f);
  for (std::int64_t group = 0; group < groups; ++group) {
    const std::int64_t first = group * weight.group_blocks;
    const std::int64_t count = blocks - first < weight.group_blocks ? blocks - first : weight.group_blocks;
    IntLanes sums[kRows];
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) sums[r] = no_sums();
    if constexpr (kBits == 8) {
      add_products_8<kRows>(codes + first * kBlockBytes, x + first * kIntegerBlock, a.x.stride, count, sums);
    } else {
      add_products_4<kRows>(codes + first * kBlockBytes, x + first * kIntegerBlock, a.x.stride, count, sums);
      for (int r = 0; r < kRows; ++r) {
        const std::int32_t* of_blocks = a.x.sums + (row + r) * (a.x.stride / kIntegerBlock) + first;
        std::int32_t inputs = 0;
        for (std::int64_t block = 0; block < count; ++block) inputs += of_blocks[block];
        sums[r] = subtract_zeros(sums[r], weight.zeros + (panel * groups + group) * 16, inputs);
      }
    }
    const Lanes scales = group_scales(weight, panel, groups, group);
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) total[r] = fma(to_lanes(sums[r]), scales, total[r]);
  }
  const std::int64_t left = weight.rows - panel * 16, lanes = left < 16 ? left : 16;
  for (int r = 0; r < kRows; ++r) {
    Lanes result = mul(total[r], broadcast(a.x.scales[row + r]));
    if (a.bias != nullptr) result = add(result, load_part(a.bias + panel * 16, lanes));
    store_part(a.out + (row + r) * a.out_stride + panel * 16, result, lanes);
  }
}

template <int kRows, int kBits>
inline void integer_rows(const IntegerTask& a, std::int64_t row, std::int64_t rows, std::int64_t panel) {
  if constexpr (kRows > 0) {
    for (; rows >= kRows; row += kRows, rows -= kRows) integer_tile<kRows, kBits>(a, row, panel);
    integer_rows<kRows - 1, kBits>(a, row, rows, panel);
  }
}

/// A panel, which the second-level cache holds, meets all rows in turn.
void multiply_integers(const IntegerTask& a) {
  for (std::int64_t panel = a.first_panel; panel < a.end_panel; ++panel) {
    if (a.weight.bits == 8) {
      integer_rows<kIntegerTileRows, 8>(a, 0, a.rows, panel);
    } else {
      integer_rows<kIntegerTileRows, 4>(a, 0, a.rows, panel);
    }
  }
}

void quantize(const QuantizeTask& task) {
  Lanes largest = broadcast(0.0f), poison = broadcast(0.0f);
  for (std::int64_t k = 0; k < task.cols; k += 16) {
    const Lanes x = load_part(task.x + k, task.cols - k < 16 ? task.cols - k : 16);
    largest = max(largest, magnitude(x));
    poison = fma(x, broadcast(0.0f), poison);  // infinities and NaN leave a NaN
  }
  const float reach = reduce_max(largest), doubt = reduce_add(poison);
  const float scale = doubt == 0.0f ? reach / 127.0f : doubt;
  *task.scale = scale;
  const bool empty = !(scale > 0.0f);  // nothing but zeros, or not finite
  for (std::int64_t k = 0; k < task.padded_cols; k += kIntegerBlock) {
    std::int32_t sum = 0;
    for (std::int64_t half = k; half < k + kIntegerBlock; half += 16) {
      float codes[16] = {};
      const std::int64_t left = task.cols - half;
      if (!empty && left > 0) {
        const Lanes x = load_part(task.x + half, left < 16 ? left : 16);
        const Lanes code = round_nearest(div(x, broadcast(scale)));
        store(codes, max(min(code, broadcast(127.0f)), broadcast(-127.0f)));
      }
      for (int i = 0; i < 16; ++i) {
        const auto code = static_cast<std::int32_t>(codes[i]);
        task.codes[half + i] = static_cast<std::int8_t>(code);
        sum += code;
      }
    }
    task.sums[k / kIntegerBlock] = sum;
  }
}
