// Norms, rotation, activations, routing and elementwise operations. Included inside an anonymous namespace (see
// kernel_table.h). Tails are padded with zeros, so an element's result does not depend on where in a row it lies.

inline std::int64_t lanes_left(std::int64_t i, std::int64_t count) {
  return count - i < 16 ? count - i : 16;
}

/// The order of the sum is a function of `count` alone: four accumulators, then one tree.
inline float sum_of_squares(const float* x, std::int64_t count) {
  Lanes sum[4] = {broadcast(0.0f), broadcast(0.0f), broadcast(0.0f), broadcast(0.0f)};
  std::int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    MILLRACE_UNROLL for (int a = 0; a < 4; ++a) {
      const Lanes v = load(x + i + 16 * a);
      sum[a] = fma(v, v, sum[a]);
    }
  }
  for (int a = 0; i < count; i += 16, ++a) {
    const Lanes v = load_part(x + i, lanes_left(i, count));
    sum[a] = fma(v, v, sum[a]);
  }
  return reduce_add(add(add(sum[0], sum[1]), add(sum[2], sum[3])));
}

inline float rms_scale(const float* x, std::int64_t count, float eps) {
  return 1.0f / __builtin_sqrtf(sum_of_squares(x, count) / static_cast<float>(count) + eps);
}

/// x * scale * weight from element i on; weight null: 1.
inline Lanes scaled(const float* x, float scale, const float* weight, std::int64_t i, std::int64_t lanes) {
  const Lanes v = mul(load_part(x + i, lanes), broadcast(scale));
  return weight != nullptr ? mul(v, load_part(weight + i, lanes)) : v;
}

inline void rms_norm(const float* x, const float* weight, float eps, std::int64_t count, float* target) {
  const float scale = rms_scale(x, count, eps);
  for (std::int64_t i = 0; i < count; i += 16) {
    const std::int64_t lanes = lanes_left(i, count);
    store_part(target + i, scaled(x, scale, weight, i, lanes), lanes);
  }
}

void residual_norm(const ResidualNormArgs& args, std::int64_t first_row, std::int64_t end_row) {
  for (std::int64_t row = first_row; row < end_row; ++row) {
    float* h = args.h + row * args.width;
    if (args.delta != nullptr || args.h_scale != 1.0f) {
      const float* delta = args.delta != nullptr ? args.delta + row * args.width : nullptr;
      const bool normed = delta != nullptr && args.delta_norm != nullptr;
      const float scale = normed ? rms_scale(delta, args.width, args.eps) : 1.0f;
      for (std::int64_t i = 0; i < args.width; i += 16) {
        const std::int64_t lanes = lanes_left(i, args.width);
        Lanes v = load_part(h + i, lanes);
        if (delta != nullptr) {
          const Lanes d = normed ? scaled(delta, scale, args.delta_norm, i, lanes) : load_part(delta + i, lanes);
          v = fma(broadcast(args.delta_scale), d, v);
        }
        if (args.h_scale != 1.0f) v = mul(v, broadcast(args.h_scale));
        store_part(h + i, v, lanes);
      }
    }
    if (args.norm != nullptr) rms_norm(h, args.norm, args.eps, args.width, args.out + row * args.width);
  }
}

inline void normalize_heads(const RopeStoreArgs& args, const float* weight, std::int64_t heads, float* x) {
  if (args.norm == NormScope::all_heads) {
    rms_norm(x, weight, args.eps, heads * args.head_dim, x);
  } else if (args.norm == NormScope::per_head) {
    for (std::int64_t h = 0; h < heads; ++h) {
      rms_norm(x + h * args.head_dim, weight, args.eps, args.head_dim, x + h * args.head_dim);
    }
  }
}

inline void rotate_heads(const RopeStoreArgs& args, std::int64_t row, std::int64_t heads, float* x) {
  if (args.cos == nullptr) return;
  const std::int64_t half = args.rotary_dim / 2;
  for (std::int64_t i = 0; i < half; i += 16) {
    const std::int64_t lanes = lanes_left(i, half);
    const Lanes cos = load_part(args.cos + row * half + i, lanes), sin = load_part(args.sin + row * half + i, lanes);
    const Lanes minus_sin = sub(broadcast(0.0f), sin);
    for (std::int64_t h = 0; h < heads; ++h) {
      float* first = x + h * args.head_dim + i;
      float* second = first + half;
      const Lanes a = load_part(first, lanes), b = load_part(second, lanes);
      store_part(first, fma(a, cos, mul(b, minus_sin)), lanes);
      store_part(second, fma(b, cos, mul(a, sin)), lanes);
    }
  }
}

/// Lanes as store() takes them, from numbers divided by their scale.
inline Lanes in_codes(const Int8*, Lanes v) {
  return max(min(round_nearest(v), broadcast(127.0f)), broadcast(-127.0f));
}
inline Lanes in_codes(const E4m3*, Lanes v) {
  return mul(round_to_e4m3(v), broadcast(1.0f / kE4m3Unit));
}

inline float largest_code(const Int8*) {
  return 127.0f;
}
inline float largest_code(const E4m3*) {
  return 448.0f;
}

/// Numbers of a head to elements `step` apart, and their scale where the elements are codes that have one.
template <typename Element>
inline void store_head(const float* x, std::int64_t count, Element* slot, std::int64_t step, float* scale,
                       float* /*middle*/) {
  float unit = 1.0f;
  if constexpr (kScaled<Element>) *scale = unit = input_scale(x, count, largest_code(slot));
  for (std::int64_t i = 0; i < count; i += 16) {
    const std::int64_t lanes = lanes_left(i, count);
    Lanes v = load_part(x + i, lanes);
    if constexpr (kScaled<Element>) {
      v = unit > 0.0f ? in_codes(slot, div(v, broadcast(unit))) : broadcast(0.0f);
    } else if constexpr (sizeof(Element) == 1) {
      v = round_to_unscaled(slot, v);
    }
    Element values[16];
    store(values, v);
    if (step == 1) {
      __builtin_memcpy(slot + i, values, static_cast<std::size_t>(lanes) * sizeof(Element));
    } else {
      for (std::int64_t lane = 0; lane < lanes; ++lane) slot[(i + lane) * step] = values[lane];
    }
  }
}

/// The same of codes in pairs, as encode_kv() defines them. Both numbers of an element are of one position, so no other
/// task writes to it.
inline void store_head(const float* x, std::int64_t count, Int4* slot, std::int64_t step, float* scale, float* middle) {
  float low = x[0], high = x[0];
  for (std::int64_t i = 1; i < count; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  const float reach = input_scale(x, count, 1.0f);  // not finite if a number is not
  const float unit = reach - reach == 0.0f ? (high - low) / 15.0f : __builtin_nanf("");
  *scale = unit;
  *middle = low + static_cast<float>(kInt4Middle) * unit;
  for (std::int64_t i = 0; i < count; i += 16) {
    Lanes code = broadcast(static_cast<float>(kInt4Middle));
    if (unit > 0.0f) {
      code = round_nearest(div(sub(load_part(x + i, lanes_left(i, count)), broadcast(low)), broadcast(unit)));
      code = max(min(code, broadcast(15.0f)), broadcast(0.0f));
    }
    Int8 codes[16];
    store(codes, code);
    for (std::int64_t lane = 0; lane < lanes_left(i, count); lane += 2) {
      const int second = i + lane + 1 < count ? codes[lane + 1].code : 0;
      slot[(i + lane) / 2 * step].codes = static_cast<std::uint8_t>(codes[lane].code | second << 4);
    }
  }
}

/// The key and the value of kv head `head`.
template <typename Element>
inline void store_key_value(const RopeStoreTask& task, std::int64_t head, const float* key, const float* value) {
  const RopeStoreArgs& args = *task.args;
  const std::size_t offset = static_cast<std::size_t>(head) * task.head_stride;
  const std::int64_t scales = head * args.kv.page_tokens;
  const std::int64_t to_middles = std::int64_t{args.kv_heads} * args.kv.page_tokens;
  float *key_scale = task.key_scale + scales, *value_scale = task.value_scale + scales;
  store_head(key, args.head_dim, reinterpret_cast<Element*>(task.key + offset), args.kv.page_tokens, key_scale,
             key_scale + to_middles);
  store_head(value, args.head_dim, reinterpret_cast<Element*>(task.value + offset), 1, value_scale,
             value_scale + to_middles);
}

void rope_store(const RopeStoreTask& task) {
  const RopeStoreArgs& args = *task.args;
  const std::int64_t q_width = std::int64_t{args.heads} * args.head_dim;
  const std::int64_t kv_width = std::int64_t{args.kv_heads} * args.head_dim;
  float* q = args.qkv + task.row * args.qkv_width;
  normalize_heads(args, args.q_norm, args.heads, q);
  rotate_heads(args, task.row, args.heads, q);
  if (args.q_scale != nullptr) {
    const Lanes scale = broadcast(args.q_scale[task.row]);
    for (std::int64_t i = 0; i < q_width; i += 16) {
      const std::int64_t lanes = lanes_left(i, q_width);
      store_part(q + i, mul(load_part(q + i, lanes), scale), lanes);
    }
  }
  if (!args.store) return;
  float* k = q + q_width;
  const float* v = k + kv_width;
  if (args.value_is_key) {  // as projected, so it is set aside before k is normalised and turned
    __builtin_memcpy(task.scratch, k, static_cast<std::size_t>(kv_width) * sizeof(float));
    v = task.scratch;
  }
  normalize_heads(args, args.k_norm, args.kv_heads, k);
  rotate_heads(args, task.row, args.kv_heads, k);
  for (std::int64_t h = 0; h < args.kv_heads; ++h) {
    const float* value = v + h * args.head_dim;
    if (args.value_norm) {
      float* normed = task.scratch + h * args.head_dim;
      rms_norm(value, nullptr, args.eps, args.head_dim, normed);
      value = normed;
    }
    const float* key = k + h * args.head_dim;
    switch (args.kv.format) {
      case KvFormat::f32:
        store_key_value<float>(task, h, key, value);
        break;
      case KvFormat::bf16:
        store_key_value<Bf16>(task, h, key, value);
        break;
      case KvFormat::int8:
        store_key_value<Int8>(task, h, key, value);
        break;
      case KvFormat::fp8_e4m3:
        store_key_value<E4m3>(task, h, key, value);
        break;
      case KvFormat::fp8_e4m3_unscaled:
        store_key_value<E4m3Unscaled>(task, h, key, value);
        break;
      case KvFormat::fp8_e5m2:
        store_key_value<E5m2>(task, h, key, value);
        break;
      case KvFormat::int4:
        store_key_value<Int4>(task, h, key, value);
        break;
    }
  }
}

template <Activation kActivation>
inline Lanes gated(Lanes gate, Lanes up, Lanes limit) {
  const Lanes one = broadcast(1.0f), half = broadcast(0.5f);
  if constexpr (kActivation == Activation::silu) {
    return mul(mul(gate, sigmoid(gate)), up);
  } else if constexpr (kActivation == Activation::gelu_tanh) {
    const Lanes cubed = mul(mul(mul(broadcast(0.044715f), gate), gate), gate);
    const Lanes inner = mul(broadcast(0.7978845608f), add(gate, cubed));
    return mul(mul(mul(half, gate), add(one, tanh(inner))), up);
  } else if constexpr (kActivation == Activation::gelu_erf) {
    return mul(mul(mul(half, gate), add(one, erf(mul(gate, broadcast(0.7071067812f))))), up);
  } else if constexpr (kActivation == Activation::relu || kActivation == Activation::relu2) {
    // What is no number stays none: max() gives its second operand then.
    const Lanes positive = max(broadcast(0.0f), gate);
    return mul(kActivation == Activation::relu ? positive : mul(positive, positive), up);
  } else {
    const Lanes g = min(limit, gate);
    const Lanes u = max(sub(broadcast(0.0f), limit), min(limit, up));
    return mul(mul(g, sigmoid(mul(broadcast(1.702f), g))), add(u, one));
  }
}

template <Activation kActivation>
void activate_all(float limit, const float* gate, const float* up, float* out, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += 16) {
    const std::int64_t lanes = lanes_left(i, count);
    const Lanes value = gated<kActivation>(load_part(gate + i, lanes), load_part(up + i, lanes), broadcast(limit));
    store_part(out + i, value, lanes);
  }
}

void activate(Activation activation, float limit, const float* gate, const float* up, float* out, std::int64_t count) {
  switch (activation) {
    case Activation::silu:
      activate_all<Activation::silu>(limit, gate, up, out, count);
      break;
    case Activation::gelu_tanh:
      activate_all<Activation::gelu_tanh>(limit, gate, up, out, count);
      break;
    case Activation::gelu_erf:
      activate_all<Activation::gelu_erf>(limit, gate, up, out, count);
      break;
    case Activation::swiglu_clamp:
      activate_all<Activation::swiglu_clamp>(limit, gate, up, out, count);
      break;
    case Activation::relu:
      activate_all<Activation::relu>(limit, gate, up, out, count);
      break;
    case Activation::relu2:
      activate_all<Activation::relu2>(limit, gate, up, out, count);
      break;
  }
}

void route(const RouteTask& task) {
  for (std::int32_t e = 0; e < task.experts; ++e) task.chosen[e] = 0;
  float largest = 0.0f;
  for (std::int32_t k = 0; k < task.top_k; ++k) {
    std::int32_t best = -1;
    for (std::int32_t e = 0; e < task.experts; ++e) {
      if (task.chosen[e] == 0 && (best < 0 || task.logits[e] > task.logits[best])) best = e;
    }
    task.chosen[best] = 1;
    if (k == 0) largest = task.logits[best];
  }
  Lanes all = broadcast(0.0f);
  for (std::int32_t e = 0; e < task.experts; e += 16) {
    const std::int64_t lanes = lanes_left(e, task.experts);
    store_part(task.weights + e, exp(sub(load_part(task.logits + e, lanes), broadcast(largest))), lanes);
    all = add(all, load_part(task.weights + e, lanes));
  }
  float chosen = 0.0f;
  for (std::int32_t e = 0; e < task.experts; ++e) {
    if (task.chosen[e] != 0) chosen += task.weights[e];
  }
  const float divisor = task.weighting == ExpertWeighting::softmax_then_top_k ? reduce_add(all) : chosen;
  for (std::int32_t e = 0; e < task.experts; ++e) {
    const float scale = task.expert_scale != nullptr ? task.expert_scale[e] : 1.0f;
    task.weights[e] = task.chosen[e] != 0 ? task.weights[e] / divisor * scale : 0.0f;
  }
}

void accumulate(float a, const float* x, float* out, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += 16) {
    const std::int64_t lanes = lanes_left(i, count);
    store_part(out + i, fma(broadcast(a), load_part(x + i, lanes), load_part(out + i, lanes)), lanes);
  }
}

void combine(float a, const float* x, float b, const float* y, float* out, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += 16) {
    const std::int64_t lanes = lanes_left(i, count);
    const Lanes first = load_part(x + i, lanes);
    const Lanes value =
        y != nullptr ? fma(broadcast(a), first, mul(broadcast(b), load_part(y + i, lanes))) : mul(broadcast(a), first);
    store_part(out + i, value, lanes);
  }
}

void scale_softcap(float* x, std::int64_t count, float scale, float softcap) {
  for (std::int64_t i = 0; i < count; i += 16) {
    const std::int64_t lanes = lanes_left(i, count);
    Lanes v = mul(broadcast(scale), load_part(x + i, lanes));
    if (softcap != 0.0f) v = mul(broadcast(softcap), tanh(div(v, broadcast(softcap))));
    store_part(x + i, v, lanes);
  }
}

void evaluate(MathFunction function, const float* x, float* out, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += 16) {
    const std::int64_t lanes = lanes_left(i, count);
    const Lanes v = load_part(x + i, lanes);
    Lanes value = exp(v);
    if (function == MathFunction::tanh) value = tanh(v);
    if (function == MathFunction::sigmoid) value = sigmoid(v);
    if (function == MathFunction::erf) value = erf(v);
    store_part(out + i, value, lanes);
  }
}
