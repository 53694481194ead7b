// Matrix products of integer weights and 8-bit inputs. Included inside an anonymous namespace (see kernel_table.h).
//
// Sums within a group are exact, so how they are cut does not matter; groups follow each other in one float accumulator
// for each output, whatever the tile or the task. IntegerTask says in which order what is rounded. And the rounding of
// inputs to 8 bits of either kind.

/// Sixteen halves, times small integers where there are some.
inline Lanes scaled_halves(const std::uint16_t* halves, const std::int8_t* factors, std::int64_t super,
                           std::int64_t group) {
  const Lanes scales = load(reinterpret_cast<const Half*>(halves) + super * 16);
  return factors != nullptr ? mul(scales, load(factors + group * 16)) : scales;
}

/// Of the codes of a row's inputs in `blocks` blocks of kInputBlock.
inline std::int32_t sum_of_blocks(const std::int32_t* sums, std::int64_t blocks) {
  if (blocks == 2) return sum_of_pairs(sums[0]) + sum_of_pairs(sums[1]);
  std::int32_t sum = 0;
  for (std::int64_t block = 0; block < blocks; ++block) sum += sum_of_pairs(sums[block]);
  return sum;
}

/// What is taken off codes, or added: nothing, one zero, a zero of each output and group, or a minimum of each.
enum class Offset { none, one, each, minimum };

/// What a tile is made of, known to the compiler.
template <CodeKind kKindOf, Offset kOffsetOf, bool kGroupedOf = true>
struct TileKind {
  static constexpr CodeKind kKind = kKindOf;
  static constexpr Offset kOffset = kOffsetOf;
  static constexpr bool kGrouped = kGroupedOf;
  static constexpr std::int64_t kInputBytes = kKind == CodeKind::int8 ? 16 : 8;  // of a panel
};

/// Sums of a group's products, less the zeros.
template <typename Tile, int kRows>
MILLRACE_INLINE void multiply_group_of(const PackedIntegers& weight, std::int64_t place, const std::byte* codes,
                                       const InputBlocks<kRows>& inputs, IntLanes (&sums)[kRows]) {
  if constexpr (Tile::kOffset == Offset::each) {
    multiply_group<kRows, Tile::kKind>(codes, inputs, zeros_of(weight.zeros + place * 16), sums);
  } else if constexpr (Tile::kOffset == Offset::one) {
    multiply_group<kRows, Tile::kKind>(codes, inputs, zeros_of(weight.zero), sums);
  } else {
    multiply_group<kRows, Tile::kKind>(codes, inputs, sums);
  }
}

template <typename Tile, int kRows>
inline void integer_tile(const IntegerTask& a, std::int64_t row, std::int64_t panel) {
  const PackedIntegers weight = a.weight;  // a copy, which no store can change
  const std::int64_t stride = a.x.stride, sums_stride = stride / kInputBlock, x_groups = a.x.groups;
  const std::byte* const codes = weight.codes + panel * weight.padded_cols * Tile::kInputBytes;
  const std::int8_t* const x = a.x.codes + row * stride;
  const std::int32_t* const input_sums = a.x.sums + row * sums_stride;
  const float* const x_scales = a.x.scales + row * x_groups;
  Lanes total[kRows];
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) total[r] = broadcast(0.0f);
  for (std::int64_t group = 0, first = 0; group < weight.groups; ++group, first += weight.group) {
    const std::int64_t left = weight.padded_cols - first, count = left < weight.group ? left : weight.group;
    const std::int64_t place = panel * weight.groups + group;
    const InputBlocks<kRows> inputs{x + first, stride, input_sums + first / kInputBlock, sums_stride, count};
    IntLanes sums[kRows];
    multiply_group_of<Tile, kRows>(weight, place, codes + first * Tile::kInputBytes, inputs, sums);
    if constexpr (!Tile::kGrouped) {
      const Lanes scales = load(weight.row_scales + panel * 16);
      MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) total[r] = mul(to_lanes(sums[r]), scales);
      continue;
    }
    const std::int64_t super = panel * weight.supers + (group >> weight.super_shift);
    const Lanes scales = scaled_halves(weight.scales, weight.factors, super, place);
    const float* const now = x_scales + (first >> weight.input_shift);
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      total[r] = fma(to_lanes(sums[r]), mul(scales, broadcast(now[r * x_groups])), total[r]);
    }
    if constexpr (Tile::kOffset == Offset::minimum) {
      const Lanes minimums = scaled_halves(weight.minimums, weight.minimum_factors, super, place);
      MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
        const std::int32_t sum = sum_of_blocks(inputs.sums + r * sums_stride, count / kInputBlock);
        total[r] = fma(minimums, broadcast(now[r * x_groups] * static_cast<float>(sum)), total[r]);
      }
    }
  }
  const std::int64_t left = weight.rows - panel * 16, lanes = left < 16 ? left : 16;
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    Lanes result = total[r];
    if constexpr (!Tile::kGrouped) {
      result = mul(result, broadcast(a.x.scales[row + r]));
    } else if (weight.row_scales != nullptr) {
      result = mul(result, load(weight.row_scales + panel * 16));
    }
    if (a.bias != nullptr) result = add(result, load_part(a.bias + panel * 16, lanes));
    store_part(a.out + (row + r) * a.out_stride + panel * 16, result, lanes);
  }
}

template <typename Tile, int kRows>
inline void integer_rows(const IntegerTask& a, std::int64_t row, std::int64_t rows, std::int64_t panel) {
  if constexpr (kRows > 0) {
    for (; rows >= kRows; row += kRows, rows -= kRows) integer_tile<Tile, kRows>(a, row, panel);
    integer_rows<Tile, kRows - 1>(a, row, rows, panel);
  }
}

/// A panel, which the second-level cache holds, meets all rows in turn.
template <typename Tile>
void multiply_panels(const IntegerTask& a) {
  for (std::int64_t panel = a.first_panel; panel < a.end_panel; ++panel) {
    integer_rows<Tile, kIntegerTileRows>(a, 0, a.rows, panel);
  }
}

/// Products with codes of inputs are of these kinds only: 8-bit weights with zeros take floats (packed_matrix.cc).
void multiply_integers(const IntegerTask& a) {
  const PackedIntegers& weight = a.weight;
  const bool minimums = weight.minimums != nullptr;
  if (weight.kind == CodeKind::e2m1) {
    multiply_panels<TileKind<CodeKind::e2m1, Offset::one>>(a);
  } else if (weight.kind == CodeKind::int4 && minimums) {
    multiply_panels<TileKind<CodeKind::int4, Offset::minimum>>(a);
  } else if (weight.kind == CodeKind::int4 && weight.zeros != nullptr) {
    multiply_panels<TileKind<CodeKind::int4, Offset::each>>(a);
  } else if (weight.kind == CodeKind::int4) {
    multiply_panels<TileKind<CodeKind::int4, Offset::one>>(a);
  } else if (weight.scales == nullptr) {
    multiply_panels<TileKind<CodeKind::int8, Offset::none, false>>(a);
  } else if (minimums) {
    multiply_panels<TileKind<CodeKind::int8, Offset::minimum>>(a);
  } else {
    multiply_panels<TileKind<CodeKind::int8, Offset::none>>(a);
  }
}

/// The scale of a row or group whose largest value is to become `largest_code`: not finite if a value is not.
inline float input_scale(const float* x, std::int64_t cols, float largest_code) {
  Lanes largest = broadcast(0.0f), poison = broadcast(0.0f);
  for (std::int64_t k = 0; k < cols; k += 16) {
    const Lanes values = load_part(x + k, cols - k < 16 ? cols - k : 16);
    largest = max(largest, magnitude(values));
    poison = fma(values, broadcast(0.0f), poison);  // infinities and NaN leave a NaN
  }
  const float reach = reduce_max(largest), doubt = reduce_add(poison);
  return doubt == 0.0f ? reach / largest_code : doubt;
}

/// Codes of `count` inputs, zeros behind `cols`, and the sums of their blocks. Returns the scale.
inline float quantize_group(const float* x, std::int64_t cols, std::int64_t count, std::int8_t* codes,
                            std::int32_t* sums) {
  const float scale = input_scale(x, cols, 127.0f);
  const bool empty = !(scale > 0.0f);  // nothing but zeros, or not finite
  for (std::int64_t k = 0; k < count; k += kInputBlock) {
    Lanes code = broadcast(0.0f);
    const std::int64_t left = cols - k;
    if (!empty && left > 0) {
      code = round_nearest(div(load_part(x + k, left < 16 ? left : 16), broadcast(scale)));
      code = max(min(code, broadcast(127.0f)), broadcast(-127.0f));
    }
    store(codes + k, code);
    sums[k / kInputBlock] = pair_sums_of(codes + k);
  }
  return scale;
}

void quantize(const QuantizeTask& task) {
  const std::int64_t step = task.group == 0 ? task.padded_cols : task.group;
  for (std::int64_t first = 0, group = 0; first < task.padded_cols; first += step, ++group) {
    const std::int64_t left = task.padded_cols - first, count = left < step ? left : step;
    const std::int64_t cols = task.cols - first < count ? task.cols - first : count;
    task.scales[group] =
        quantize_group(task.x + first, cols, count, task.codes + first, task.sums + first / kInputBlock);
  }
}

/// Of a value within the largest code.
inline Lanes round_to_e4m3(Lanes value) {
  // Three bits behind the leading one are left, or steps of 2^-9: what is added and taken off has its last digit there.
  const Lanes digits = mul(max(power_below(value), broadcast(0x1p-6f)), broadcast(0x1.8p20f));
  return with_sign(min(sub(add(magnitude(value), digits), digits), broadcast(448.0f)), value);
}

void round_inputs_to_e4m3(const RoundTask& task) {
  const float scale = input_scale(task.x, task.cols, 448.0f);
  for (std::int64_t k = 0; k < task.cols; k += 16) {
    const std::int64_t lanes = task.cols - k < 16 ? task.cols - k : 16;
    Lanes rounded = broadcast(0.0f);
    if (scale > 0.0f) rounded = round_to_e4m3(div(load_part(task.x + k, lanes), broadcast(scale)));
    store_part(task.values + k, rounded, lanes);
  }
  *task.scale = scale;
}
