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
  float* query;                    // [queries][width]
  float* result;                   // [queries][width]: sum of weighted values so far
  float* part;                     // [queries][width]: of the chunk
  float* score;                    // [queries][kAttentionChunk]
  float* key;                      // [chunk / 16][width][16], where the pages do not serve as they are
  float* value;                    // [chunk][width], likewise
  float *key_scale, *value_scale;  // [chunk], where elements are codes
  float *largest, *sum;            // [queries], so far
  float *part_largest, *part_sum, *keep, *take;
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
  float** const arrays[] = {&s.largest, &s.sum, &s.part_largest, &s.part_sum, &s.keep, &s.take};
  for (float** array : arrays) *array = take(padded);  // an initializer_list would leave its functions behind
  return s;
}

/// First element of the task's kv head in the page of `position`: keys [head_dim][page_tokens] or values
/// [page_tokens][head_dim], by `offset`.
template <typename Element>
inline const Element* kv_slab(const AttendTask& task, std::size_t offset, std::int64_t position) {
  const KvLayer& kv = task.args->kv;
  const std::int64_t page = task.page_table[position / kv.page_tokens];
  const std::int64_t elements = static_cast<std::int64_t>(task.kv_head) * kv.page_tokens * task.args->head_dim;
  const std::byte* numbers = kv.pages + static_cast<std::size_t>(page) * kv.page_bytes + offset;
  return reinterpret_cast<const Element*>(numbers) + elements;
}

template <typename Element>
inline const Element* value_row(const AttendTask& task, std::int64_t position) {
  const KvLayer& kv = task.args->kv;
  return kv_slab<Element>(task, kv.value_offset, position) + position % kv.page_tokens * task.args->head_dim;
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
  const std::int64_t row_bytes = std::int64_t{task.args->head_dim} * static_cast<std::int64_t>(sizeof(Element));
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
  for (std::int64_t d = 0; d < task.args->head_dim; d += per_line) __builtin_prefetch(start + d * step_bytes);
}

/// What load() gives times this is the number, before scales.
template <typename Element>
constexpr float kUnit = 1.0f;
template <>
constexpr float kUnit<E4m3> = kE4m3Unit;

/// Scales of positions `range` of a chunk, by `offset` those of keys or values; zeros for the others.
template <typename Element>
inline void gather_scales(const AttendTask& task, std::size_t offset, std::int64_t base, ChunkRange range,
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
  if constexpr (kUnit<Element> != 1.0f) {
    for (std::int64_t j = 0; j < kAttentionChunk; j += 16) {
      store(target + j, mul(load(target + j), broadcast(kUnit<Element>)));
    }
  }
}

/// A row of values as floats, padded with zeros to whole Lanes.
template <typename Element>
inline void widen_row(const Element* source, std::int64_t count, float* target) {
  std::int64_t i = 0;
  for (; i + 16 <= count; i += 16) store(target + i, load(source + i));
  if (i == count) return;
  Element tail[16] = {};
  __builtin_memcpy(tail, source + i, static_cast<std::size_t>(count - i) * sizeof(Element));
  store(target + i, load(tail));
}

/// The part of the next chunk that block `block` of this one's positions corresponds to, as far as the task reads.
inline ChunkRange ahead(const AttendTask& task, std::int64_t base, std::int64_t block) {
  const std::int64_t begin = base + kAttentionChunk + block * 16;
  return {begin, begin + 16 < task.end ? begin + 16 : task.end};
}

/// Products of the queries [first, first + count) with the keys of one block of 16 positions, w as in Product.
template <typename Element>
inline void score_block(const AttendState& s, std::int64_t block, const Element* w, std::int64_t step,
                        std::int64_t first, std::int64_t count) {
  Product<Element> product{};
  product.w = w;
  product.step = step;
  product.panels = 1;
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
  for (std::int64_t d = 0; d < s.head_dim; ++d) {
    Element row[16] = {};
    for (std::int64_t i = 0; i < 16; ++i) {
      if (columns[i] != nullptr) row[i] = columns[i][d * page_tokens];
    }
    store(target + d * 16, load(row));
  }
}

/// Scores of the queries [first, first + count) with the chunk's positions in `range`; what other positions of its
/// blocks get is of no meaning.
template <typename Element>
inline void score_chunk(const AttendTask& task, const AttendState& s, std::int64_t base, ChunkRange range,
                        std::int64_t first, std::int64_t count) {
  const KvLayer& kv = task.args->kv;
  const bool whole_blocks = kv.page_tokens % 16 == 0;
  for (std::int64_t block = range.low / 16; block <= range.high / 16; ++block) {
    float* copy = s.key + block * s.width * 16;
    if (!whole_blocks) {
      gather_keys<Element>(task, s, base, range, block, copy);
      score_block(s, block, copy, 16, first, count);
      continue;
    }
    if (ahead(task, base, block).low < task.end) prefetch_keys<Element>(task, ahead(task, base, block).low);
    const Element* keys = key_column<Element>(task, base + block * 16);
    if (sizeof(Element) == sizeof(float) || count <= kTileRows) {
      score_block(s, block, keys, kv.page_tokens, first, count);
    } else {  // widened once for all tiles of queries
      for (std::int64_t d = 0; d < s.head_dim; ++d) store(copy + d * 16, load(keys + d * kv.page_tokens));
      score_block(s, block, copy, 16, first, count);
    }
  }
}

/// Scores of one query to weights exp(score - largest), in place; those outside `visible` become 0. `computed` is the
/// range that the block of queries had scores for. Where keys and values are codes, scores are multiplied with the
/// scales of keys, and weights, after they are summed, with those of values.
template <bool kScaled>
inline void chunk_softmax(const AttendArgs& args, const AttendState& s, ChunkRange computed, ChunkRange visible,
                          float* score, float* chunk_largest, float* chunk_sum) {
  const std::int64_t begin = computed.low / 16 * 16, end = (computed.high / 16 + 1) * 16;
  for (std::int64_t j = begin; j < end; j += 16) {
    Lanes v = load(score + j);
    if constexpr (kScaled) v = mul(v, load(s.key_scale + j));
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
  *chunk_largest = reduce_max(largest);
  const Lanes origin = broadcast(*chunk_largest == -__builtin_inff() ? 0.0f : *chunk_largest);
  Lanes sum = broadcast(0.0f);  // hidden positions add an exact zero, so how many were computed does not show
  for (std::int64_t j = begin; j < end; j += 16) {
    const Lanes weight = exp(sub(load(score + j), origin));
    if constexpr (kScaled) {
      store(score + j, mul(weight, load(s.value_scale + j)));
    } else {
      store(score + j, weight);
    }
    sum = add(sum, weight);
  }
  *chunk_sum = reduce_add(sum);
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

/// One chunk for the rows [first_row, end_row) of the task, each of which sees some of it.
template <typename Element>
inline void attend_chunk(const AttendTask& task, const AttendState& s, std::int64_t base, std::int64_t first_row,
                         std::int64_t end_row) {
  const AttendArgs& args = *task.args;
  constexpr bool kFloats = sizeof(Element) == sizeof(float), kScaled = sizeof(Element) == 1;
  const ChunkRange range{visible_range(args, base, task.position + first_row).low,
                         visible_range(args, base, task.position + end_row - 1).high};
  const std::int64_t first = first_row * s.group, end = end_row * s.group;
  score_chunk<Element>(task, s, base, range, first, end - first);
  if constexpr (kScaled) {
    gather_scales<Element>(task, args.kv.key_scale_offset, base, range, s.key_scale);
    gather_scales<Element>(task, args.kv.value_scale_offset, base, range, s.value_scale);
  }

  prefetch_values<Element>(task, ahead(task, base, 0).low, ahead(task, base, 3).high);
  const bool copied = s.head_dim != s.width || (!kFloats && end - first > kTileRows);
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
      chunk_softmax<kScaled>(args, s, range, visible, s.score + i * kAttentionChunk, s.part_largest + i,
                             s.part_sum + i);
    }
    const std::int64_t begin = row * s.group, count = (next - row) * s.group;
    if (copied) {
      weigh_values<float>(task, s, base, visible, s.value, begin, count);
    } else {
      weigh_values<Element>(task, s, base, visible, nullptr, begin, count);
    }
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

template <typename Element>
inline void attend_to(const AttendTask& task) {
  const AttendArgs& args = *task.args;
  const AttendState s = make_attend_state(task);
  begin_queries(task, s);
  const std::int64_t seen = first_visible(args, task.position);
  std::int64_t base = (seen > task.begin ? seen : task.begin) / kAttentionChunk * kAttentionChunk;
  for (; base < task.end; base += kAttentionChunk) {
    std::int64_t first_row = 0, end_row = task.rows;
    while (task.position + first_row < base) ++first_row;
    while (first_visible(args, task.position + end_row - 1) >= base + kAttentionChunk) --end_row;
    attend_chunk<Element>(task, s, base, first_row, end_row);
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
  }
}
