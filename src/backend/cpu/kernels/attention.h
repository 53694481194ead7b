// Attention of a block of queries that share their keys and values. Included inside an anonymous namespace (see
// kernel_table.h).
//
// Keys and values are taken in chunks of kAttentionChunk absolute positions. For each query a chunk gives a maximum m,
// a sum l and a weighted value that depend on the chunk alone; these are folded in ascending order (Milakov &
// Gimelshein, "Online normalizer calculation for softmax", 2018). So neither the other queries of the block nor where a
// step began enter a result, and a query may take in its chunks in several tasks, in company that changes at a chunk's
// border: the rows of many sequences together as long as their pages are the same, then each sequence alone (a
// cascade).

/// What one task works on. All arrays are in the scratch memory; `width` is head_dim rounded up to 16.
struct AttendState {
  std::int64_t group;  // queries of a row
  std::int64_t head_dim, width;
  float* query;                      // [queries][width]
  float* result;                     // [queries][width]: sum of weighted values so far
  float* part;                       // [queries][width]: of the chunk
  float* score;                      // [queries][kAttentionChunk]
  float* key;                        // [chunk / 16][width][16], where the pages do not serve as they are
  float* value;                      // [chunk][width], likewise
  float *key_scale, *value_scale;    // [chunk], where codes have scales
  float *key_middle, *value_middle;  // [chunk], where they have middles
  float *largest, *sum;              // [queries], so far
  float *part_largest, *part_sum, *keep, *take;
  float* query_sum;    // [queries]: of a query's numbers, where keys have middles
  float* part_middle;  // [queries]: sum of weighted middles of values
};

/// Positions [low, high] of a chunk that starts at `base`, relative to it.
struct ChunkRange {
  std::int64_t low, high;
};

inline std::int64_t first_visible(const AttendArgs& args, std::int64_t position) {
  return args.window > 0 && position >= args.window ? position - args.window + 1 : 0;
}

inline ChunkRange visible_range(const AttendArgs& args, std::int64_t base, std::int64_t position) {
  const std::int64_t first = first_visible(args, position) - base, last = position - base;
  return {first > 0 ? first : 0, last < kAttentionChunk - 1 ? last : kAttentionChunk - 1};
}

inline AttendState make_attend_state(const AttendTask& task) {
  const AttendArgs& args = *task.args;
  AttendState s{};
  s.group = args.heads / args.kv_heads;
  s.head_dim = args.head_dim;
  s.width = (s.head_dim + 15) / 16 * 16;
  const std::int64_t queries = task.rows * s.group;
  const std::int64_t padded = (queries + 15) / 16 * 16;
  float* next = task.scratch;
  const auto take = [&next](std::int64_t count) {
    float* start = next;
    next += count;
    return start;
  };
  s.query = take(padded * s.width);
  s.result = take(padded * s.width);
  s.part = take(padded * s.width);
  s.score = take(padded * kAttentionChunk);
  s.key = take(kAttentionChunk * s.width);
  s.value = take(kAttentionChunk * s.width);
  s.key_scale = take(kAttentionChunk);
  s.value_scale = take(kAttentionChunk);
  s.key_middle = take(kAttentionChunk);
  s.value_middle = take(kAttentionChunk);
  float** const arrays[] = {&s.largest, &s.sum,  &s.part_largest, &s.part_sum,
                            &s.keep,    &s.take, &s.query_sum,    &s.part_middle};
  for (float** array : arrays) *array = take(padded);  // an initializer_list would leave its functions behind
  return s;
}

/// First element of the task's kv head in the page of `position`: keys [head_dim][page_tokens] or values
/// [page_tokens][head_dim], by `offset`.
template <typename Element>
inline const Element* kv_slab(const AttendTask& task, std::size_t offset, std::int64_t position) {
  const KvLayer& kv = task.args->kv;
  const std::int64_t page = task.page_table[position / kv.page_tokens];
  const std::int64_t elements =
      static_cast<std::int64_t>(task.kv_head) * kv.page_tokens * elements_of<Element>(task.args->head_dim);
  const std::byte* numbers = kv.pages + static_cast<std::size_t>(page) * kv.page_bytes + offset;
  return reinterpret_cast<const Element*>(numbers) + elements;
}

template <typename Element>
inline const Element* value_row(const AttendTask& task, std::int64_t position) {
  const KvLayer& kv = task.args->kv;
  return kv_slab<Element>(task, kv.value_offset, position) +
         position % kv.page_tokens * elements_of<Element>(task.args->head_dim);
}

/// Element 0 of the key at `position`; the next is page_tokens elements further.
template <typename Element>
inline const Element* key_column(const AttendTask& task, std::int64_t position) {
  const KvLayer& kv = task.args->kv;
  return kv_slab<Element>(task, kv.key_offset, position) + position % kv.page_tokens;
}

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

/// Scales of positions `range` of a chunk, by `offset` those of keys or values; zeros for the others.
inline void gather_scales(const AttendTask& task, std::size_t offset, std::int64_t base, ChunkRange range, float unit,
                          float* target) {
  const KvLayer& kv = task.args->kv;
  for (std::int64_t j = 0; j < kAttentionChunk; j += 16) store(target + j, broadcast(0.0f));
  for (std::int64_t j = range.low; j <= range.high;) {
    const std::int64_t slot = (base + j) % kv.page_tokens, page = task.page_table[(base + j) / kv.page_tokens];
    const std::int64_t in_page = kv.page_tokens - slot, rest = range.high + 1 - j;
    const std::int64_t count = rest < in_page ? rest : in_page;
    const std::byte* scales = kv.pages + static_cast<std::size_t>(page) * kv.page_bytes + offset;
    __builtin_memcpy(target + j,
                     reinterpret_cast<const float*>(scales) + task.kv_head * std::int64_t{kv.page_tokens} + slot,
                     static_cast<std::size_t>(count) * sizeof(float));
    j += count;
  }
  if (unit != 1.0f) {
    for (std::int64_t j = 0; j < kAttentionChunk; j += 16) store(target + j, mul(load(target + j), broadcast(unit)));
  }
}

/// Scales, and middles where there are any, of keys and values.
template <typename Element>
inline void gather_all_scales(const AttendTask& task, const AttendState& s, std::int64_t base, ChunkRange range) {
  const AttendArgs& args = *task.args;
  const std::size_t key = args.kv.key_scale_offset, value = args.kv.value_scale_offset;
  if constexpr (kScaled<Element>) {
    gather_scales(task, key, base, range, kUnit<Element>, s.key_scale);
    gather_scales(task, value, base, range, kUnit<Element>, s.value_scale);
  }
  if constexpr (kHasMiddle<Element>) {
    const std::size_t scales = static_cast<std::size_t>(std::int64_t{args.kv_heads} * args.kv.page_tokens);
    gather_scales(task, key + scales * sizeof(float), base, range, 1.0f, s.key_middle);
    gather_scales(task, value + scales * sizeof(float), base, range, 1.0f, s.value_middle);
  }
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
      score_few<kFew>(keys, next, kv.page_tokens, s.head_dim, s.key, s.score + block * 16);
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

/// chunk_softmax() of a chunk that is visible as a whole, where nothing but the scale of attention is to be done: the
/// same operations, without memory between them.
inline void whole_softmax(float scale, float* score, float& part_largest, float& part_sum) {
  constexpr int kBlocks = kAttentionChunk / 16;
  Lanes v[kBlocks];
  MILLRACE_UNROLL for (int b = 0; b < kBlocks; ++b) v[b] = mul(load(score + b * 16), broadcast(scale));
  Lanes largest = v[0];
  MILLRACE_UNROLL for (int b = 1; b < kBlocks; ++b) largest = max(largest, v[b]);
  part_largest = reduce_max(largest);
  const Lanes origin = broadcast(part_largest == -__builtin_inff() ? 0.0f : part_largest);
  Lanes sum = broadcast(0.0f);
  MILLRACE_UNROLL for (int b = 0; b < kBlocks; ++b) {
    const Lanes weight = exp(sub(v[b], origin));
    store(score + b * 16, weight);
    sum = add(sum, weight);
  }
  part_sum = reduce_add(sum);
}

/// Scores of query i to weights exp(score - largest), in place; those outside `visible` become 0. `computed` is the
/// range that the block of queries had scores for. Where keys and values are codes, scores are multiplied with the
/// scales of keys, and weights, after they are summed, with those of values. A middle is the same for all numbers of a
/// key or value: it adds to a score the sum of the query's numbers times itself, and to all of the result alike.
template <typename Element>
inline void chunk_softmax(const AttendArgs& args, const AttendState& s, ChunkRange computed, ChunkRange visible,
                          std::int64_t i) {
  float* score = s.score + i * kAttentionChunk;
  if constexpr (!kScaled<Element> && !kHasMiddle<Element>) {
    if (visible.low == 0 && visible.high == kAttentionChunk - 1 && args.softcap == 0.0f) {
      return whole_softmax(args.scale, score, s.part_largest[i], s.part_sum[i]);
    }
  }
  const std::int64_t begin = computed.low / 16 * 16, end = (computed.high / 16 + 1) * 16;
  for (std::int64_t j = begin; j < end; j += 16) {
    Lanes v = load(score + j);
    if constexpr (kScaled<Element>) v = mul(v, load(s.key_scale + j));
    if constexpr (kHasMiddle<Element>) v = fma(broadcast(s.query_sum[i]), load(s.key_middle + j), v);
    v = mul(v, broadcast(args.scale));
    if (args.softcap != 0.0f) {
      v = mul(broadcast(args.softcap), tanh(div(v, broadcast(args.softcap))));
    }
    store(score + j, v);
  }
  for (std::int64_t j = begin; j < visible.low; ++j) score[j] = -__builtin_inff();
  for (std::int64_t j = visible.high + 1; j < end; ++j) score[j] = -__builtin_inff();

  Lanes largest = load(score + begin);
  for (std::int64_t j = begin + 16; j < end; j += 16) largest = max(largest, load(score + j));
  s.part_largest[i] = reduce_max(largest);
  const Lanes origin = broadcast(s.part_largest[i] == -__builtin_inff() ? 0.0f : s.part_largest[i]);
  const Lanes nothing = broadcast(0.0f);
  Lanes sum = nothing, middle = nothing;  // hidden positions add an exact zero, so how many were computed does not show
  for (std::int64_t j = begin; j < end; j += 16) {
    const Lanes weight = exp(sub(load(score + j), origin));
    if constexpr (kHasMiddle<Element>) {  // what is hidden may have a middle that is not finite
      middle = add(middle, select_less(nothing, weight, mul(weight, load(s.value_middle + j)), nothing));
    }
    if constexpr (kScaled<Element>) {
      store(score + j, mul(weight, load(s.value_scale + j)));
    } else {
      store(score + j, weight);
    }
    sum = add(sum, weight);
  }
  s.part_sum[i] = reduce_add(sum);
  if constexpr (kHasMiddle<Element>) s.part_middle[i] = reduce_add(middle);
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

/// To the parts of the queries [first, first + count) what the middles of values are of them.
inline void add_middles(const AttendState& s, std::int64_t first, std::int64_t count) {
  for (std::int64_t i = first; i < first + count; ++i) {
    const Lanes middle = broadcast(s.part_middle[i]);
    for (std::int64_t d = 0; d < s.width; d += 16) {
      float* part = s.part + i * s.width + d;
      store(part, add(load(part), middle));
    }
  }
}

/// Adds the chunk's part to what the queries [first, end) have.
inline void fold_chunk(const AttendState& s, std::int64_t first, std::int64_t end) {
  for (std::int64_t i = first; i < end; i += 16) {
    const std::int64_t lanes = end - i < 16 ? end - i : 16;
    const Lanes before = load_part(s.largest + i, lanes), now = load_part(s.part_largest + i, lanes);
    const Lanes largest = max(before, now);
    const Lanes nothing = broadcast(-__builtin_inff());
    const Lanes origin = select_less(nothing, largest, largest, broadcast(0.0f));
    const Lanes keep = exp(sub(before, origin)), take = exp(sub(now, origin));
    const Lanes sum = fma(load_part(s.part_sum + i, lanes), take, mul(load_part(s.sum + i, lanes), keep));
    store_part(s.largest + i, largest, lanes);
    store_part(s.sum + i, sum, lanes);
    store_part(s.keep + i, keep, lanes);
    store_part(s.take + i, take, lanes);
  }
  for (std::int64_t i = first; i < end; ++i) {
    const Lanes keep = broadcast(s.keep[i]), take = broadcast(s.take[i]);
    for (std::int64_t d = 0; d < s.width; d += 16) {
      float* result = s.result + i * s.width + d;
      store(result, fma(load(s.part + i * s.width + d), take, mul(load(result), keep)));
    }
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
    for (std::int64_t i = row * s.group; i < next * s.group; ++i) {
      chunk_softmax<Element>(args, s, range, visible, i);
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
  fold_chunk(s, first, end);
}

/// Query i of the task: its row in the batch, times heads, plus its head. Indexes `out` and the state.
inline std::int64_t query_index(const AttendTask& task, const AttendState& s, std::int64_t i) {
  return (task.batch_row + i / s.group) * task.args->heads + task.kv_head * s.group + i % s.group;
}

/// Fetches the queries, and their state: that of no position, or where another task has left them.
inline void begin_queries(const AttendTask& task, const AttendState& s) {
  const AttendArgs& args = *task.args;
  for (std::int64_t i = 0; i < task.rows * s.group; ++i) {
    const std::int64_t index = query_index(task, s, i), head = index % args.heads;
    const float* q = args.q + index / args.heads * args.q_stride + head * s.head_dim;
    const float* before = args.out + index * s.head_dim;
    for (std::int64_t d = 0; d < s.width; d += 16) {
      const std::int64_t lanes = s.head_dim - d < 16 ? s.head_dim - d : 16;
      store(s.query + i * s.width + d, load_part(q + d, lanes));
      store(s.result + i * s.width + d, task.resume ? load_part(before + d, lanes) : broadcast(0.0f));
    }
    if (task.resume) {
      s.largest[i] = task.state[2 * index];
      s.sum[i] = task.state[2 * index + 1];
    } else {  // A sink is a logit without a value: its exp(sink - largest) is the sum before the first chunk.
      s.largest[i] = args.sinks != nullptr ? args.sinks[head] : -__builtin_inff();
      s.sum[i] = args.sinks != nullptr ? 1.0f : 0.0f;
    }
  }
}

/// Sums of the queries' numbers.
inline void sum_queries(const AttendTask& task, const AttendState& s) {
  for (std::int64_t i = 0; i < task.rows * s.group; ++i) {
    Lanes sum = broadcast(0.0f);
    for (std::int64_t d = 0; d < s.width; d += 16) sum = add(sum, load(s.query + i * s.width + d));
    s.query_sum[i] = reduce_add(sum);
  }
}

/// Leaves the results, or the state for another task.
inline void end_queries(const AttendTask& task, const AttendState& s) {
  for (std::int64_t i = 0; i < task.rows * s.group; ++i) {
    const std::int64_t index = query_index(task, s, i);
    const Lanes factor = broadcast(1.0f / s.sum[i]);
    float* out = task.args->out + index * s.head_dim;
    for (std::int64_t d = 0; d < s.head_dim; d += 16) {
      const std::int64_t lanes = s.head_dim - d < 16 ? s.head_dim - d : 16;
      const Lanes result = load(s.result + i * s.width + d);
      store_part(out + d, task.suspend ? result : mul(result, factor), lanes);
    }
    if (!task.suspend) continue;
    task.state[2 * index] = s.largest[i];
    task.state[2 * index + 1] = s.sum[i];
  }
}

template <typename Element, int kFew>
inline void attend_chunks(const AttendTask& task, const AttendState& s) {
  const AttendArgs& args = *task.args;
  const std::int64_t seen = first_visible(args, task.position);
  std::int64_t base = (seen > task.begin ? seen : task.begin) / kAttentionChunk * kAttentionChunk;
  for (; base < task.end; base += kAttentionChunk) {
    std::int64_t first_row = 0, end_row = task.rows;
    while (task.position + first_row < base) ++first_row;
    while (first_visible(args, task.position + end_row - 1) >= base + kAttentionChunk) --end_row;
    attend_chunk<Element, kFew>(task, s, base, first_row, end_row);
  }
}

template <typename Element, int kFew>
inline void attend_few(const AttendTask& task, const AttendState& s) {
  if constexpr (kFew > 0) {
    if (s.group == kFew) {
      for (std::int64_t i = 0; i < kFew; ++i) {
        for (std::int64_t d = 0; d < s.head_dim; ++d) s.key[d * kFew + i] = s.query[i * s.width + d];
      }
      return attend_chunks<Element, kFew>(task, s);
    }
    attend_few<Element, kFew - 1>(task, s);
  }
}

template <typename Element>
inline void attend_to(const AttendTask& task) {
  const AttendState s = make_attend_state(task);
  begin_queries(task, s);
  if constexpr (kHasMiddle<Element>) sum_queries(task, s);
  if (task.rows == 1 && s.group <= kTileRows && task.args->kv.page_tokens % 16 == 0 && s.head_dim == s.width) {
    attend_few<Element, kTileRows>(task, s);
  } else {
    attend_chunks<Element, 0>(task, s);
  }
  end_queries(task, s);
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
