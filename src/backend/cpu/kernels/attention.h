// Attention by products of floats. Included inside an anonymous namespace (see kernel_table.h), after attend_state.h.

/// Asks for the values of positions [begin, end) ahead of their use: they lie in short runs all over memory, which the
/// processor's own prefetchers do not follow.
template <typename Element>
inline void prefetch_values(const AttendTask& task, std::int64_t begin, std::int64_t end) {
  const KvLayer& kv = task.args->kv;
  const std::int64_t row_bytes = elements_of<Element>(task.args->head_dim) * static_cast<std::int64_t>(sizeof(Element));
  for (std::int64_t t = begin; t < end;) {
    const std::int64_t in_page = kv.page_tokens - t % kv.page_tokens;
    const std::int64_t count = end - t < in_page ? end - t : in_page;
    const auto* start = reinterpret_cast<const std::byte*>(value_row<Element>(task, t));
    for (std::int64_t b = 0; b < count * row_bytes; b += 64) __builtin_prefetch(start + b);
    t += count;
  }
}

/// The same for the keys of a block of 16 positions from `begin` on, which lie in one page.
template <typename Element>
inline void prefetch_keys(const AttendTask& task, std::int64_t begin) {
  const KvLayer& kv = task.args->kv;
  const std::int64_t step_bytes = std::int64_t{kv.page_tokens} * static_cast<std::int64_t>(sizeof(Element));
  const std::int64_t per_line = step_bytes < 64 ? 64 / step_bytes : 1;  // elements of a key in a line of the cache
  const auto* start = reinterpret_cast<const std::byte*>(key_column<Element>(task, begin));
  const std::int64_t elements = elements_of<Element>(task.args->head_dim);
  for (std::int64_t d = 0; d < elements; d += per_line) __builtin_prefetch(start + d * step_bytes);
}

/// A row of values as floats, padded to whole Lanes.
template <typename Element>
inline void widen_row(const Element* source, std::int64_t count, float* target) {
  std::int64_t i = 0;
  for (; i + 16 <= count; i += 16) store(target + i, load(source + i / kNumbers<Element>));
  if (i == count) return;
  Element tail[16] = {};
  __builtin_memcpy(tail, source + i / kNumbers<Element>,
                   static_cast<std::size_t>(elements_of<Element>(count - i)) * sizeof(Element));
  store(target + i, load(tail));
}

/// The part of the next chunk that block `block` of this one's positions corresponds to, as far as the task reads.
inline ChunkRange ahead(const AttendTask& task, std::int64_t base, std::int64_t block) {
  const std::int64_t begin = base + kAttentionChunk + block * 16;
  return {begin, begin + 16 < task.end ? begin + 16 : task.end};
}

/// Products of the queries [first, first + count) with the keys of `blocks` blocks of 16 positions; w as in Product.
template <typename Element>
inline void score_blocks(const AttendState& s, std::int64_t block, std::int64_t blocks, const Element* w,
                         std::int64_t step, std::int64_t first, std::int64_t count) {
  Product<Element> product{};
  product.w = w;
  product.panel_stride = s.width * 16;
  product.step = step;
  product.panels = blocks;
  product.last_lanes = 16;
  product.count = s.head_dim;
  product.x = s.query + first * s.width;
  product.x_stride = s.width;
  product.rows = count;
  product.out = s.score + first * kAttentionChunk + block * 16;
  product.out_stride = kAttentionChunk;
  product.first = true;
  multiply(product);
}

/// Elements in an order that in_order() puts right, for sums that are not looked at before.
template <typename Element>
inline Lanes load_any(const Element* p) {
  return load(p);
}
inline Lanes load_any(const Bf16* p) {
  return load_paired(p);
}
template <typename Element>
inline Lanes as_loaded(Lanes sums) {
  return sums;
}
template <>
inline Lanes as_loaded<Bf16>(Lanes sums) {
  return in_order(sums);
}

/// score_blocks() of few queries and one block, at the pace at which keys come from memory: `packed` has the queries'
/// numbers by dimension, [head_dim][kQueries]. `next` is where keys lie that will be wanted: they are asked for one by
/// one in the shadow of the products, since a burst of them waits for itself.
template <int kQueries, typename Element>
inline void score_few(const Element* keys, const Element* next, std::int64_t step, std::int64_t head_dim,
                      const float* packed, float* score) {
  Lanes sum[kQueries];
  MILLRACE_UNROLL for (int i = 0; i < kQueries; ++i) sum[i] = broadcast(0.0f);
  for (const float* const end = packed + head_dim * kQueries; packed < end; keys += step, next += step) {
    __builtin_prefetch(next);
    if constexpr (kNumbers<Element> == 2) {  // and so has head_dim, as a multiple of 16, whole elements
      Lanes key, second;
      load_pairs(keys, key, second);
      MILLRACE_UNROLL for (int i = 0; i < kQueries; ++i) sum[i] = fma(broadcast(packed[i]), key, sum[i]);
      packed += kQueries;
      MILLRACE_UNROLL for (int i = 0; i < kQueries; ++i) sum[i] = fma(broadcast(packed[i]), second, sum[i]);
      packed += kQueries;
    } else {
      const Lanes key = load_any(keys);
      MILLRACE_UNROLL for (int i = 0; i < kQueries; ++i) sum[i] = fma(broadcast(packed[i]), key, sum[i]);
      packed += kQueries;
    }
  }
  MILLRACE_UNROLL for (int i = 0; i < kQueries; ++i) store(score + i * kAttentionChunk, as_loaded<Element>(sum[i]));
}

/// Keys of 16 positions, `elements` of each and `step` apart, as floats [elements * kNumbers][16].
template <typename Element>
inline void widen_keys(const Element* keys, std::int64_t step, std::int64_t elements, float* target) {
  for (std::int64_t e = 0; e < elements; ++e) {
    if constexpr (kNumbers<Element> == 1) {
      store(target + e * 16, load(keys + e * step));
    } else {
      Lanes first, second;
      load_pairs(keys + e * step, first, second);
      store(target + 2 * e * 16, first);
      store(target + (2 * e + 1) * 16, second);
    }
  }
}

/// Keys of one block as floats [head_dim][16], in pages whose size is no multiple of 16. Positions outside `range` may
/// have no page: they count as zeros.
template <typename Element>
inline void gather_keys(const AttendTask& task, const AttendState& s, std::int64_t base, ChunkRange range,
                        std::int64_t block, float* target) {
  const std::int64_t page_tokens = task.args->kv.page_tokens;
  const Element* columns[16];
  for (std::int64_t i = 0; i < 16; ++i) {
    const std::int64_t j = block * 16 + i;
    columns[i] = j >= range.low && j <= range.high ? key_column<Element>(task, base + j) : nullptr;
  }
  for (std::int64_t e = 0; e < elements_of<Element>(s.head_dim); ++e) {
    Element row[16] = {};
    for (std::int64_t i = 0; i < 16; ++i) {
      if (columns[i] != nullptr) row[i] = columns[i][e * page_tokens];
    }
    widen_keys(row, 16, 1, target + e * kNumbers<Element> * 16);
  }
}

/// Scores of the queries [first, first + count) with the chunk's positions in `range`; what other positions of its
/// blocks get is of no meaning.
template <typename Element, int kFew>
inline void score_chunk(const AttendTask& task, const AttendState& s, std::int64_t base, ChunkRange range,
                        std::int64_t first, std::int64_t count) {
  const KvLayer& kv = task.args->kv;
  const bool whole_blocks = kv.page_tokens % 16 == 0;
  const std::int64_t begin = range.low / 16, end = range.high / 16 + 1;
  for (std::int64_t block = begin; block < end; ++block) {
    float* copy = s.key + block * s.width * 16;
    if (!whole_blocks) {
      gather_keys<Element>(task, s, base, range, block, copy);
      continue;
    }
    const Element* keys = key_column<Element>(task, base + block * 16);
    const std::int64_t later = ahead(task, base, block).low;
    if constexpr (kFew > 0) {
      const Element* next = later < task.end ? key_column<Element>(task, later) : keys;
      score_few<kFew>(keys, next, kv.page_tokens, s.head_dim, s.query, s.score + block * 16);
      continue;
    }
    if (later < task.end) prefetch_keys<Element>(task, later);
    if constexpr (kNumbers<Element> == 1) {
      if (count <= kTileRows) {
        score_blocks(s, block, 1, keys, kv.page_tokens, first, count);
        continue;
      }
    }
    // Widened once for all tiles of queries, which then meet all blocks side by side.
    widen_keys(keys, kv.page_tokens, elements_of<Element>(s.head_dim), copy);
  }
  if (kFew == 0 && (!whole_blocks || kNumbers<Element> != 1 || count > kTileRows)) {
    score_blocks(s, begin, end - begin, s.key + begin * s.width * 16, 16, first, count);
  }
}

/// part = weights * values over `range` for the queries [first, first + count), positions ascending. `copy`: the
/// chunk's values as floats, or null to read the pages.
template <typename Element>
inline void weigh_values(const AttendTask& task, const AttendState& s, std::int64_t base, ChunkRange range,
                         const Element* copy, std::int64_t first, std::int64_t count) {
  const KvLayer& kv = task.args->kv;
  Product<Element> product{};
  product.panel_stride = 16;
  product.step = s.width;
  product.panels = s.width / 16;
  product.last_lanes = 16;
  product.x_stride = kAttentionChunk;
  product.rows = count;
  product.out = s.part + first * s.width;
  product.out_stride = s.width;
  for (std::int64_t j = range.low; j <= range.high; j += product.count) {
    // From the pages: as far as this one goes.
    const std::int64_t in_page = kv.page_tokens - (base + j) % kv.page_tokens;
    const std::int64_t rest = range.high + 1 - j;
    product.count = copy != nullptr || rest < in_page ? rest : in_page;
    product.w = copy != nullptr ? copy + j * s.width : value_row<Element>(task, base + j);
    product.x = s.score + first * kAttentionChunk + j;
    product.first = j == range.low;
    multiply(product);
  }
}

/// The same for few queries: 16 dimensions of all positions at a time, from the pages.
template <int kQueries, typename Element>
inline void weigh_few(const AttendTask& task, const AttendState& s, std::int64_t base, ChunkRange range) {
  const std::int64_t page_tokens = task.args->kv.page_tokens, head_dim = task.args->head_dim,
                     elements = elements_of<Element>(head_dim);
  for (std::int64_t d = 0; d < head_dim; d += 16) {
    Lanes sum[kQueries];
    MILLRACE_UNROLL for (int i = 0; i < kQueries; ++i) sum[i] = broadcast(0.0f);
    for (std::int64_t j = range.low; j <= range.high;) {
      const std::int64_t in_page = page_tokens - (base + j) % page_tokens, rest = range.high + 1 - j;
      const std::int64_t count = rest < in_page ? rest : in_page;
      const std::int64_t later = base + kAttentionChunk + j;
      const Element* value = value_row<Element>(task, base + j) + d / kNumbers<Element>;
      const Element* next = later < task.end ? value_row<Element>(task, later) + d / kNumbers<Element> : value;
      const float* weight = s.score + j;
      for (const float* const end = weight + count; weight < end; ++weight, value += elements, next += elements) {
        __builtin_prefetch(next);
        const Lanes row = load_any(value);
        MILLRACE_UNROLL for (int i = 0; i < kQueries; ++i) {
          sum[i] = fma(broadcast(weight[i * kAttentionChunk]), row, sum[i]);
        }
      }
      j += count;
    }
    MILLRACE_UNROLL for (int i = 0; i < kQueries; ++i) store(s.part + i * s.width + d, as_loaded<Element>(sum[i]));
  }
}

/// One chunk for the rows [first_row, end_row) of the task, each of which sees some of it. kFew: the queries of a task
/// of one row whose pages serve as they are, where there is code of its own for so many; else 0.
template <typename Element, int kFew>
inline void attend_chunk(const AttendTask& task, const AttendState& s, std::int64_t base, std::int64_t first_row,
                         std::int64_t end_row) {
  const AttendArgs& args = *task.args;
  constexpr bool kPairs = kNumbers<Element> != 1;
  const ChunkRange range{visible_range(args, base, task.position + first_row).low,
                         visible_range(args, base, task.position + end_row - 1).high};
  const std::int64_t first = first_row * s.group, end = end_row * s.group;
  score_chunk<Element, kFew>(task, s, base, range, first, end - first);
  gather_all_scales<Element>(task, s, base, range);

  bool wanted = false;
  for (std::int64_t row = first_row; row < end_row; ++row) {
    const ChunkRange visible = visible_range(args, base, task.position + row);
    for (std::int64_t i = row * s.group; i < (row + 1) * s.group; ++i) {
      wanted |= chunk_softmax<Element>(args, s, range, visible, biases_of(task, base), i);
    }
  }
  if (!wanted) return keep_page_sums(task, s, base, first, end);

  if constexpr (kFew == 0) prefetch_values<Element>(task, ahead(task, base, 0).low, ahead(task, base, 3).high);
  const bool copied = s.head_dim != s.width || end - first > kTileRows || (kPairs && kFew == 0);
  if (copied) {
    for (std::int64_t j = range.low; j <= range.high; ++j) {
      widen_row(value_row<Element>(task, base + j), s.head_dim, s.value + j * s.width);
    }
  }
  // Rows that see the same positions are multiplied together. What a row does not see is left out, not multiplied by
  // zero: it may hold an infinity, and even a finite value could turn -0 into 0.
  std::int64_t row = first_row;
  while (row < end_row) {
    const ChunkRange visible = visible_range(args, base, task.position + row);
    std::int64_t next = row + 1;
    for (; next < end_row; ++next) {
      const ChunkRange other = visible_range(args, base, task.position + next);
      if (other.low != visible.low || other.high != visible.high) break;
    }
    const std::int64_t begin = row * s.group, count = (next - row) * s.group;
    if constexpr (kFew > 0) {
      weigh_few<kFew, Element>(task, s, base, visible);
    } else if (kPairs || copied) {
      weigh_values<float>(task, s, base, visible, s.value, begin, count);
    } else if constexpr (!kPairs) {
      weigh_values<Element>(task, s, base, visible, nullptr, begin, count);
    }
    if constexpr (kHasMiddle<Element>) add_middles(s, begin, count);
    row = next;
  }
  keep_page_sums(task, s, base, first, end);
  fold_chunk(s, first, end);
}

template <typename Element, int kFew>
inline void attend_chunks(const AttendTask& task, const AttendHead* heads) {
  for_each_chunk(task, heads,
                 [](const AttendHead& head, std::int64_t base, std::int64_t first_row, std::int64_t end_row) {
                   attend_chunk<Element, kFew>(head.task, head.state, base, first_row, end_row);
                 });
}

/// Puts the queries in the order that score_few() takes.
template <int kQueries>
inline void pack_few(const AttendState& s) {
  for (std::int64_t i = 0; i < kQueries; ++i) {
    for (std::int64_t d = 0; d < s.head_dim; ++d) s.part[d * kQueries + i] = s.query[i * s.width + d];
  }
  for (std::int64_t d = 0; d < s.head_dim * kQueries; d += 16) store(s.query + d, load(s.part + d));
}

template <typename Element, int kFew>
inline void attend_few(const AttendTask& task, const AttendHead* heads) {
  if constexpr (kFew > 0) {
    if (heads->state.group == kFew) {
      for (std::int32_t h = 0; h < task.kv_heads; ++h) pack_few<kFew>(heads[h].state);
      return attend_chunks<Element, kFew>(task, heads);
    }
    attend_few<Element, kFew - 1>(task, heads);
  }
}

template <typename Element>
inline void attend_to(const AttendTask& task) {
  AttendHead heads[kAttendHeads];
  divide_into_heads(task, heads);
  for (std::int32_t h = 0; h < task.kv_heads; ++h) {
    begin_queries(heads[h].task, heads[h].state);
    if constexpr (kHasMiddle<Element>) sum_queries(heads[h].task, heads[h].state);
  }
  const AttendState& s = heads->state;
  if (task.rows == 1 && s.group <= kTileRows && task.args->kv.page_tokens % 16 == 0 && s.head_dim == s.width) {
    attend_few<Element, kTileRows>(task, heads);
  } else {
    attend_chunks<Element, 0>(task, heads);
  }
  for (std::int32_t h = 0; h < task.kv_heads; ++h) end_queries(heads[h].task, heads[h].state);
}

void attend(const AttendTask& task) {
  switch (task.args->kv.format) {
    case KvFormat::f32:
      return attend_to<float>(task);
    case KvFormat::bf16:
      return attend_to<Bf16>(task);
    case KvFormat::int8:
      return attend_to<Int8>(task);
    case KvFormat::fp8_e4m3:
      return attend_to<E4m3>(task);
    case KvFormat::fp8_e4m3_unscaled:
      return attend_to<E4m3Unscaled>(task);
    case KvFormat::fp8_e5m2:
      return attend_to<E5m2>(task);
    case KvFormat::int4:
      return attend_to<Int4>(task);
  }
}
