// Inputs of products rounded to codes, to E4M3 and to bf16. Included inside an anonymous namespace (see
// kernel_table.h).

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

/// Codes of `count` inputs, zeros behind `cols`, and the sums of their blocks; totals[0] is known. Returns the scale.
inline float quantize_group(const float* x, std::int64_t cols, std::int64_t count, std::int8_t* codes,
                            std::int32_t* sums, std::int32_t* totals) {
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
    const std::int32_t pairs = pair_sums_of(codes + k);
    sums[k / kInputBlock] = pairs;
    totals[k / kInputBlock + 1] = totals[k / kInputBlock] + sum_of_pairs(pairs);
  }
  return scale;
}

void quantize(const QuantizeTask& task) {
  const std::int64_t step = task.group == 0 ? task.padded_cols : task.group;
  task.totals[0] = 0;
  for (std::int64_t first = 0, group = 0; first < task.padded_cols; first += step, ++group) {
    const std::int64_t left = task.padded_cols - first, count = left < step ? left : step;
    const std::int64_t cols = task.cols - first < count ? task.cols - first : count, block = first / kInputBlock;
    const float scale =
        quantize_group(task.x + first, cols, count, task.codes + first, task.sums + block, task.totals + block);
    const std::int64_t end = block + count / kInputBlock;
    const float shift = scale * static_cast<float>(task.totals[end] - task.totals[block]);
    task.scales[group] = task.tile_scales[group * 16] = scale;
    task.shifts[group] = task.tile_shifts[group * 16] = shift;
  }
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

/// And zeros behind it.
void round_inputs_to_bf16(const HalveTask& task) {
  for (std::int64_t k = 0; k < task.padded_cols; k += 16) {
    const std::int64_t left = task.cols - k;
    const Lanes values = left > 0 ? load_part(task.x + k, left < 16 ? left : 16) : broadcast(0.0f);
    store(reinterpret_cast<Bf16*>(task.values + k), values);
  }
}
