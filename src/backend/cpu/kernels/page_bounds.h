// Bounds of a page's keys, and of scores with them (docs/sparsity.md). Included inside an anonymous namespace (see
// kernel_table.h), after kv_elements.h.

/// kv_bound(), which kernels may not share.
inline std::uint16_t bound(float number, bool up) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &number, sizeof bits);
  const bool negative = (bits & 0x80000000u) != 0;
  const std::uint32_t magnitude = ((bits & 0x7fffffffu) + (negative == up ? 0u : 0xffffu)) >> 16;
  return static_cast<std::uint16_t>((magnitude < 0x7f7f ? magnitude : 0x7f7f) |
                                    (negative && magnitude > 0 ? 0x8000u : 0u));
}

template <typename Element>
inline void bound_keys_of(const BoundTask& task) {
  constexpr float kPlaces[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const KvLayer& kv = *task.kv;
  const std::int64_t page_tokens = kv.page_tokens, elements = elements_of<Element>(task.head_dim);
  const std::int64_t width = (std::int64_t{task.head_dim} + 15) / 16 * 16;
  const Lanes least = broadcast(-__builtin_inff()), place = load(kPlaces);
  const std::byte* const page = kv.pages + static_cast<std::size_t>(task.page) * kv.page_bytes;
  std::uint16_t* bounds = kv.key_bounds + static_cast<std::size_t>(task.page) * kv.key_bound_numbers;
  for (std::int64_t h = 0; h < task.kv_heads; ++h, bounds += 2 * width) {
    const auto* keys = reinterpret_cast<const Element*>(page + kv.key_offset) + h * page_tokens * elements;
    const float* const scale = reinterpret_cast<const float*>(page + kv.key_scale_offset) + h * page_tokens;
    const float* const middle = scale + task.kv_heads * page_tokens;
    for (std::int64_t e = 0; e < elements; ++e, keys += page_tokens) {
      // Of the smallest numbers the largest negative. Numbers that are NaN are passed over.
      Lanes high[kNumbers<Element>], low[kNumbers<Element>];
      for (int i = 0; i < kNumbers<Element>; ++i) high[i] = low[i] = least;
      for (std::int64_t t = 0; t < page_tokens; t += 16) {
        Lanes number[kNumbers<Element>];
        if constexpr (kNumbers<Element> == 1) {
          number[0] = load(keys + t);
        } else {
          load_pairs(keys + t, number[0], number[1]);
        }
        const Lanes left = broadcast(static_cast<float>(page_tokens - t));
        for (int i = 0; i < kNumbers<Element>; ++i) {
          const Lanes whole = whole_number<Element>(number[i], scale + t, middle + t);
          high[i] = max(select_less(place, left, whole, least), high[i]);
          low[i] = max(select_less(place, left, sub(broadcast(0.0f), whole), least), low[i]);
        }
      }
      for (int i = 0; i < kNumbers<Element>; ++i) {
        const std::int64_t d = e * kNumbers<Element> + i;
        if (d >= task.head_dim) break;
        bounds[d] = bound(reduce_max(high[i]), true);
        bounds[width + d] = bound(-reduce_max(low[i]), false);
      }
    }
    for (std::int64_t d = task.head_dim; d < width; ++d) bounds[d] = bounds[width + d] = 0;
  }
}

void bound_keys(const BoundTask& task) {
  switch (task.kv->format) {
    case KvFormat::f32:
      return bound_keys_of<float>(task);
    case KvFormat::bf16:
      return bound_keys_of<Bf16>(task);
    case KvFormat::int8:
      return bound_keys_of<Int8>(task);
    case KvFormat::fp8_e4m3:
      return bound_keys_of<E4m3>(task);
    case KvFormat::fp8_e4m3_unscaled:
      return bound_keys_of<E4m3Unscaled>(task);
    case KvFormat::fp8_e5m2:
      return bound_keys_of<E5m2>(task);
    case KvFormat::int4:
      return bound_keys_of<Int4>(task);
  }
}

/// A row's queries, taken apart: a number goes with the largest of the keys where it is positive and with the smallest
/// where it is negative. The other half of each is zero, and bounds are finite, so that both products can be added.
/// [heads][2][width]
inline void split_queries(const PageScoreTask& task, std::int64_t width) {
  const AttendArgs& args = *task.args;
  const Lanes nothing = broadcast(0.0f);
  float* parts = task.scratch;
  for (std::int64_t head = 0; head < args.heads; ++head, parts += 2 * width) {
    const float* const q = args.q + task.row * args.q_stride + head * args.head_dim;
    for (std::int64_t d = 0; d < width; d += 16) {
      const Lanes number = load_part(q + d, args.head_dim - d < 16 ? args.head_dim - d : 16);
      store(parts + d, max(number, nothing));
      store(parts + width + d, min(number, nothing));
    }
  }
}

/// Scores of `kQueries` heads with the same bounds, `stride` apart.
template <int kQueries>
inline void score_page(const float* queries, const Bf16* bounds, std::int64_t width, float* scores,
                       std::int64_t stride) {
  Lanes sum[kQueries];
  MILLRACE_UNROLL for (int i = 0; i < kQueries; ++i) sum[i] = broadcast(0.0f);
  for (std::int64_t d = 0; d < width; d += 16) {
    const Lanes largest = load(bounds + d), smallest = load(bounds + width + d);
    MILLRACE_UNROLL for (int i = 0; i < kQueries; ++i) {
      sum[i] = fma(load(queries + (2 * i + 1) * width + d), smallest,
                   fma(load(queries + 2 * i * width + d), largest, sum[i]));
    }
  }
  MILLRACE_UNROLL for (int i = 0; i < kQueries; ++i) scores[i * stride] = reduce_add(sum[i]);
}

void score_pages(const PageScoreTask& task) {
  const AttendArgs& args = *task.args;
  const KvLayer& kv = args.kv;
  const std::int64_t width = (std::int64_t{args.head_dim} + 15) / 16 * 16, group = args.heads / args.kv_heads;
  split_queries(task, width);
  const auto bounds_of = [&](std::int64_t page) {
    const auto place = static_cast<std::size_t>(task.page_table[page]) * kv.key_bound_numbers;
    return reinterpret_cast<const Bf16*>(kv.key_bounds + place);
  };
  constexpr std::int64_t kAhead = 6, kLine = 64 / sizeof(Bf16);  // pages need not stand in a row
  for (std::int64_t page = task.first; page < task.end; ++page) {
    const Bf16* bounds = bounds_of(page);
    const Bf16* later = bounds_of(page + kAhead < task.end ? page + kAhead : page);
    const float* queries = task.scratch;
    float* scores = task.scores + page - task.first;
    for (std::int64_t h = 0; h < args.kv_heads; ++h, bounds += 2 * width, later += 2 * width) {
      for (std::int64_t b = 0; b < 2 * width; b += kLine) __builtin_prefetch(later + b, 0, 2);
      for (std::int64_t left = group; left > 0;) {
        const std::int64_t count = left >= 4 ? 4 : left >= 2 ? 2 : 1;
        if (count == 4) score_page<4>(queries, bounds, width, scores, task.stride);
        if (count == 2) score_page<2>(queries, bounds, width, scores, task.stride);
        if (count == 1) score_page<1>(queries, bounds, width, scores, task.stride);
        left -= count;
        queries += 2 * width * count;
        scores += task.stride * count;
      }
    }
  }
}
