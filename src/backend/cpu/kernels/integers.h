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
  std::int32_t sum = 0;
  for (std::int64_t block = 0; block < blocks; ++block) sum += sums[block];
  return sum;
}

template <int kRows, CodeKind kKind, bool kGrouped>
inline void integer_tile(const IntegerTask& a, std::int64_t row, std::int64_t panel) {
  const PackedIntegers& weight = a.weight;
  constexpr std::int64_t kInputBytes = kKind == CodeKind::int8 ? 16 : 8;
  const std::byte* codes = weight.codes + panel * weight.padded_cols * kInputBytes;
  const std::int8_t* x = a.x.codes + row * a.x.stride;
  const bool offset = weight.zeros != nullptr || weight.zero != 0 || weight.minimums != nullptr;
  Lanes total[kRows];
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) total[r] = broadcast(0.0f);
  for (std::int64_t group = 0, first = 0; group < weight.groups; ++group, first += weight.group) {
    const std::int64_t left = weight.padded_cols - first, count = left < weight.group ? left : weight.group;
    IntLanes sums[kRows];
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) sums[r] = no_sums();
    add_products<kRows, kKind>(codes + first * kInputBytes, x + first, a.x.stride, count, sums);
    if constexpr (!kGrouped) {
      const Lanes scales = load(weight.row_scales + panel * 16);
      MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) total[r] = mul(to_lanes(sums[r]), scales);
      continue;
    }
    const std::int64_t super = panel * weight.supers + (group >> weight.super_shift);
    const std::int64_t place = panel * weight.groups + group;
    const Lanes scales = scaled_halves(weight.scales, weight.factors, super, place);
    Lanes minimums = broadcast(0.0f);
    if (weight.minimums != nullptr) {
      minimums = scaled_halves(weight.minimums, weight.minimum_factors, super, place);
    }
    for (int r = 0; r < kRows; ++r) {
      const float x_scale = a.x.scales[(row + r) * a.x.groups + (first >> weight.input_shift)];
      std::int32_t inputs = 0;
      if (offset) {
        inputs = sum_of_blocks(a.x.sums + ((row + r) * a.x.stride + first) / kInputBlock, count / kInputBlock);
        if (weight.zeros != nullptr) {
          sums[r] = subtract_zeros(sums[r], weight.zeros + place * 16, inputs);
        } else if (weight.zero != 0) {
          sums[r] = subtract(sums[r], weight.zero * inputs);
        }
      }
      total[r] = fma(to_lanes(sums[r]), mul(scales, broadcast(x_scale)), total[r]);
      if (weight.minimums != nullptr) {
        total[r] = fma(minimums, broadcast(x_scale * static_cast<float>(inputs)), total[r]);
      }
    }
  }
  const std::int64_t left = weight.rows - panel * 16, lanes = left < 16 ? left : 16;
  for (int r = 0; r < kRows; ++r) {
    Lanes result = total[r];
    if constexpr (!kGrouped) {
      result = mul(result, broadcast(a.x.scales[row + r]));
    } else if (weight.row_scales != nullptr) {
      result = mul(result, load(weight.row_scales + panel * 16));
    }
    if (a.bias != nullptr) result = add(result, load_part(a.bias + panel * 16, lanes));
    store_part(a.out + (row + r) * a.out_stride + panel * 16, result, lanes);
  }
}

template <int kRows, CodeKind kKind, bool kGrouped>
inline void integer_rows(const IntegerTask& a, std::int64_t row, std::int64_t rows, std::int64_t panel) {
  if constexpr (kRows > 0) {
    for (; rows >= kRows; row += kRows, rows -= kRows) integer_tile<kRows, kKind, kGrouped>(a, row, panel);
    integer_rows<kRows - 1, kKind, kGrouped>(a, row, rows, panel);
  }
}

/// A panel, which the second-level cache holds, meets all rows in turn.
void multiply_integers(const IntegerTask& a) {
  for (std::int64_t panel = a.first_panel; panel < a.end_panel; ++panel) {
    if (a.weight.kind == CodeKind::e2m1) {
      integer_rows<kIntegerTileRows, CodeKind::e2m1, true>(a, 0, a.rows, panel);
    } else if (a.weight.kind == CodeKind::int4) {
      integer_rows<kIntegerTileRows, CodeKind::int4, true>(a, 0, a.rows, panel);
    } else if (a.weight.scales != nullptr) {
      integer_rows<kIntegerTileRows, CodeKind::int8, true>(a, 0, a.rows, panel);
    } else {
      integer_rows<kIntegerTileRows, CodeKind::int8, false>(a, 0, a.rows, panel);
    }
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
    sums[k / kInputBlock] = static_cast<std::int32_t>(reduce_add(code));  // exact: far below 2^24
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
