// What attention keeps of a block of queries that share their keys and values, and all of it but the products. Included
// inside an anonymous namespace (see kernel_table.h).
//
// Keys and values are taken in chunks of kAttentionChunk absolute positions. For each query a chunk gives a maximum m,
// a sum l and a weighted value that depend on the chunk alone; these are folded in ascending order (Milakov &
// Gimelshein, "Online normalizer calculation for softmax", 2018). So neither the other queries of the block nor where a
// step began enter a result, and a query may take in its chunks in several tasks, in company that changes at a chunk's
// border: the rows of many sequences together as long as their pages are the same, then each sequence alone (a
// cascade).

/// What one kv head of a task works on. All arrays are in the scratch memory; `width` is head_dim rounded up to 16.
struct AttendState {
  std::int64_t group;  // queries of a row
  std::int64_t head_dim, width;
  // Each head's own.
  float* query;          // [queries][width]
  float* result;         // [queries][width]: sum of weighted values so far
  float *largest, *sum;  // [queries], so far
  float* query_sum;      // [queries]: of a query's numbers, where keys have middles
  // Of the chunk, for one head after the other.
  float* part;                       // [queries][width]: weighted values
  float* score;                      // [queries][kAttentionChunk]
  float* key;                        // [chunk / 16][width][16], where the pages do not serve as they are
  float* value;                      // [chunk][width], likewise
  float *key_scale, *value_scale;    // [chunk], where codes have scales
  float *key_middle, *value_middle;  // [chunk], where they have middles
  float *part_largest, *part_sum, *keep, *take;
  float* part_middle;  // [queries]: sum of weighted middles of values
  float* page_sum;     // [queries][chunk / 16]: sums of weights by 16 positions, where they are wanted; else null
  std::int64_t* left_out;
};

/// A kv head of a task: a task of its own, that shares its memory with the others'.
struct AttendHead {
  AttendTask task;
  AttendState state;
};

inline void divide_into_heads(const AttendTask& task, AttendHead* heads) {
  const AttendArgs& args = *task.args;
  AttendState s{};
  s.group = task.queries != nullptr ? 1 : args.heads / args.kv_heads;
  s.head_dim = args.head_dim;
  s.width = (s.head_dim + 15) / 16 * 16;
  const std::int64_t padded = (task.rows * s.group + 15) / 16 * 16;
  float* next = task.scratch;
  const auto take = [&next](std::int64_t count) {
    float* start = next;
    next += count;
    return start;
  };
  s.part = take(padded * s.width);
  s.score = take(padded * kAttentionChunk);
  s.key = take(kAttentionChunk * s.width);
  s.value = take(kAttentionChunk * s.width);
  float** const of_positions[] = {&s.key_scale, &s.value_scale, &s.key_middle, &s.value_middle};
  for (float** array : of_positions)
    *array = take(kAttentionChunk);  // an initializer_list would leave functions behind
  float** const of_queries[] = {&s.part_largest, &s.part_sum, &s.keep, &s.take, &s.part_middle};
  for (float** array : of_queries) *array = take(padded);
  s.page_sum = take(padded * (kAttentionChunk / 16));
  if (task.masses == nullptr) s.page_sum = nullptr;
  s.left_out = task.left_out;
  for (std::int32_t h = 0; h < task.kv_heads; ++h) {
    s.query = take(padded * s.width);
    s.result = take(padded * s.width);
    float** const own[] = {&s.largest, &s.sum, &s.query_sum};
    for (float** array : own) *array = take(padded);
    heads[h] = {task, s};
    heads[h].task.kv_head += h;
    heads[h].task.kv_heads = 1;
  }
}

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

/// exp() of what is not positive; 0 where that would be subnormal, which some processors compute slowly.
inline Lanes weight_of(Lanes x) {
  const Lanes least = broadcast(-87.0f);
  return select_less(x, least, broadcast(0.0f), exp(max(least, x)));  // the bound comes first: NaN stays NaN
}

/// Products of query i with the keys of positions [j, j + 16) of the chunk, with all that is multiplied or added.
template <typename Element>
inline Lanes scaled_score(const AttendArgs& args, const AttendState& s, std::int64_t i, std::int64_t j) {
  Lanes v = load(s.score + i * kAttentionChunk + j);
  if constexpr (kScaled<Element>) v = mul(v, load(s.key_scale + j));
  if constexpr (kHasMiddle<Element>) v = fma(broadcast(s.query_sum[i]), load(s.key_middle + j), v);
  return mul(v, broadcast(args.scale));
}

inline Lanes capped(const AttendArgs& args, Lanes v) {
  if (args.softcap == 0.0f) return v;
  return mul(broadcast(args.softcap), tanh(div(v, broadcast(args.softcap))));
}

/// The task's biases of the chunk that starts at `base`; null: none.
inline const float* biases_of(const AttendTask& task, std::int64_t base) {
  return task.biases != nullptr ? task.biases + base : nullptr;
}

/// Whether the chunk is not worth its values for query i, by its largest score (AttendArgs::skip_margin). It is then as
/// if the query did not see it.
inline bool leaves_out(const AttendArgs& args, const AttendState& s, ChunkRange visible, std::int64_t i) {
  if (!(s.part_largest[i] < s.largest[i] - args.skip_margin)) return false;
  s.part_largest[i] = -__builtin_inff();
  s.part_sum[i] = s.part_middle[i] = 0.0f;
  const Lanes nothing = broadcast(0.0f);
  for (std::int64_t j = 0; j < kAttentionChunk; j += 16) store(s.score + i * kAttentionChunk + j, nothing);
  for (std::int64_t d = 0; d < s.width; d += 16) store(s.part + i * s.width + d, nothing);
  for (std::int64_t b = 0; s.page_sum != nullptr && b < kAttentionChunk / 16; ++b) {
    s.page_sum[i * (kAttentionChunk / 16) + b] = 0.0f;
  }
  if (s.left_out != nullptr) *s.left_out += visible.high - visible.low + 1;
  return true;
}

/// chunk_softmax() of a chunk that is visible as a whole, without softcap: the same operations, without memory between
/// them.
template <typename Element>
inline bool whole_softmax(const AttendArgs& args, const AttendState& s, const float* biases, std::int64_t i) {
  constexpr int kBlocks = kAttentionChunk / 16;
  float* score = s.score + i * kAttentionChunk;
  Lanes v[kBlocks];
  MILLRACE_UNROLL for (int b = 0; b < kBlocks; ++b) {
    v[b] = scaled_score<Element>(args, s, i, b * 16);
    if (biases != nullptr) v[b] = add(v[b], load(biases + b * 16));
  }
  Lanes largest = v[0];
  MILLRACE_UNROLL for (int b = 1; b < kBlocks; ++b) largest = max(largest, v[b]);
  s.part_largest[i] = reduce_max(largest);
  if (leaves_out(args, s, {0, kAttentionChunk - 1}, i)) return false;
  const Lanes origin = broadcast(s.part_largest[i] == -__builtin_inff() ? 0.0f : s.part_largest[i]);
  const Lanes nothing = broadcast(0.0f);
  Lanes sum = nothing, middle = nothing;
  MILLRACE_UNROLL for (int b = 0; b < kBlocks; ++b) {
    const Lanes weight = weight_of(sub(v[b], origin));
    sum = add(sum, weight);
    if (s.page_sum != nullptr) s.page_sum[i * kBlocks + b] = reduce_add(weight);
    if constexpr (kHasMiddle<Element>) {
      middle = add(middle, select_less(nothing, weight, mul(weight, load(s.value_middle + b * 16)), nothing));
    }
    if constexpr (kScaled<Element>) {
      store(score + b * 16, mul(weight, load(s.value_scale + b * 16)));
    } else {
      store(score + b * 16, weight);
    }
  }
  s.part_sum[i] = reduce_add(sum);
  if constexpr (kHasMiddle<Element>) s.part_middle[i] = reduce_add(middle);
  return true;
}

/// Scores of query i to weights exp(score - largest), in place; those outside `visible` become 0. `computed` is the
/// range that the block of queries had scores for. Where keys and values are codes, scores are multiplied with the
/// scales of keys, and weights, after they are summed, with those of values. A middle is the same for all numbers of a
/// key or value: it adds to a score the sum of the query's numbers times itself, and to all of the result alike.
/// `biases`: of the chunk, or null. False: the query leaves out the chunk.
template <typename Element>
inline bool chunk_softmax(const AttendArgs& args, const AttendState& s, ChunkRange computed, ChunkRange visible,
                          const float* biases, std::int64_t i) {
  float* score = s.score + i * kAttentionChunk;
  if (visible.low == 0 && visible.high == kAttentionChunk - 1 && args.softcap == 0.0f) {
    return whole_softmax<Element>(args, s, biases, i);
  }
  const std::int64_t begin = computed.low / 16 * 16, end = (computed.high / 16 + 1) * 16;
  for (std::int64_t j = begin; j < end; j += 16) {
    Lanes v = capped(args, scaled_score<Element>(args, s, i, j));
    if (biases != nullptr) v = add(v, load(biases + j));
    store(score + j, v);
  }
  for (std::int64_t j = begin; j < visible.low; ++j) score[j] = -__builtin_inff();
  for (std::int64_t j = visible.high + 1; j < end; ++j) score[j] = -__builtin_inff();

  Lanes largest = load(score + begin);
  for (std::int64_t j = begin + 16; j < end; j += 16) largest = max(largest, load(score + j));
  s.part_largest[i] = reduce_max(largest);
  if (leaves_out(args, s, visible, i)) return false;
  const Lanes origin = broadcast(s.part_largest[i] == -__builtin_inff() ? 0.0f : s.part_largest[i]);
  const Lanes nothing = broadcast(0.0f);
  Lanes sum = nothing, middle = nothing;  // hidden positions add an exact zero, so how many were computed does not show
  for (std::int64_t b = 0; s.page_sum != nullptr && b < kAttentionChunk / 16; ++b) {
    s.page_sum[i * (kAttentionChunk / 16) + b] = 0.0f;
  }
  for (std::int64_t j = begin; j < end; j += 16) {
    const Lanes weight = weight_of(sub(load(score + j), origin));
    if constexpr (kHasMiddle<Element>) {  // what is hidden may have a middle that is not finite
      middle = add(middle, select_less(nothing, weight, mul(weight, load(s.value_middle + j)), nothing));
    }
    if constexpr (kScaled<Element>) {
      store(score + j, mul(weight, load(s.value_scale + j)));
    } else {
      store(score + j, weight);
    }
    sum = add(sum, weight);
    if (s.page_sum != nullptr) s.page_sum[i * (kAttentionChunk / 16) + j / 16] = reduce_add(weight);
  }
  s.part_sum[i] = reduce_add(sum);
  if constexpr (kHasMiddle<Element>) s.part_middle[i] = reduce_add(middle);
  return true;
}

/// Leaves what the queries [first, end) give to the pages of the chunk at `base`, as parts of that chunk's sum, where
/// that is wanted. The rows before `first` see nothing of it.
inline void keep_page_sums(const AttendTask& task, const AttendState& s, std::int64_t base, std::int64_t first,
                           std::int64_t end) {
  if (s.page_sum == nullptr) return;
  constexpr std::int64_t kBlocks = kAttentionChunk / 16;
  const AttendMasses& masses = *task.masses;
  const std::int64_t chunk = masses.first_chunk + base / kAttentionChunk, head = task.kv_head - masses.first_kv_head;
  for (std::int64_t i = 0; i < task.rows * s.group; ++i) {
    const std::int64_t query = head * task.rows * s.group + i;
    const bool sees = i >= first && i < end;
    float* pages = masses.pages + query * masses.chunks * kBlocks + chunk * kBlocks;
    for (std::int64_t b = 0; b < kBlocks; ++b) pages[b] = sees ? s.page_sum[i * kBlocks + b] : 0.0f;
    masses.largest[query * masses.chunks + chunk] = sees ? s.part_largest[i] : -__builtin_inff();
  }
}

/// Those sums to parts of all that the queries give.
inline void finish_page_sums(const AttendTask& task, const AttendState& s) {
  if (s.page_sum == nullptr || task.suspend) return;
  constexpr std::int64_t kBlocks = kAttentionChunk / 16;
  const AttendMasses& masses = *task.masses;
  const std::int64_t head = task.kv_head - masses.first_kv_head;
  for (std::int64_t i = 0; i < task.rows * s.group; ++i) {
    const std::int64_t query = head * task.rows * s.group + i;
    for (std::int64_t chunk = 0; chunk < masses.chunks; ++chunk) {
      float* pages = masses.pages + (query * masses.chunks + chunk) * kBlocks;
      const float largest = masses.largest[query * masses.chunks + chunk];
      const Lanes factor = weight_of(broadcast(largest - s.largest[i]));
      float factors[16];
      store(factors, factor);
      for (std::int64_t b = 0; b < kBlocks; ++b) {
        pages[b] = largest == -__builtin_inff() ? 0.0f : pages[b] * factors[0] / s.sum[i];
      }
    }
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
    if (s.part_largest[i] == -__builtin_inff()) continue;  // it sees nothing of the chunk, whatever stands there
    const Lanes keep = broadcast(s.keep[i]), take = broadcast(s.take[i]);
    for (std::int64_t d = 0; d < s.width; d += 16) {
      float* result = s.result + i * s.width + d;
      store(result, fma(load(s.part + i * s.width + d), take, mul(load(result), keep)));
    }
  }
}

/// Query i of the task: its row in the batch, times heads, plus its head. Indexes `out` and the state.
inline std::int64_t query_index(const AttendTask& task, const AttendState& s, std::int64_t i) {
  if (task.queries != nullptr) return task.queries[i];
  return (task.batch_row + i / s.group) * task.args->heads + task.kv_head * s.group + i % s.group;
}

/// Fetches the queries, and their state: that of no position, or where another task has left them.
inline void begin_queries(const AttendTask& task, const AttendState& s) {
  const AttendArgs& args = *task.args;
  for (std::int64_t i = 0; i < task.rows * s.group; ++i) {
    const std::int64_t index = query_index(task, s, i), head = index % args.heads;
    const float* q = task.turned != nullptr ? task.turned + i * s.head_dim
                                            : args.q + index / args.heads * args.q_stride + head * s.head_dim;
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
  finish_page_sums(task, s);
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

/// Calls chunk(head, base, first row, end row) for each chunk, in ascending order, and the rows that see some of it:
/// for one head after the other, whose keys and values lie side by side, so that memory is read in long pieces.
template <typename Chunk>
inline void for_each_chunk(const AttendTask& task, const AttendHead* heads, Chunk&& chunk) {
  const AttendArgs& args = *task.args;
  const std::int64_t seen = first_visible(args, task.position);
  std::int64_t base = (seen > task.begin ? seen : task.begin) / kAttentionChunk * kAttentionChunk;
  for (; base < task.end; base += kAttentionChunk) {
    std::int64_t first_row = 0, end_row = task.rows;
    while (task.position + first_row < base) ++first_row;
    while (first_visible(args, task.position + end_row - 1) >= base + kAttentionChunk) --end_row;
    for (std::int32_t h = 0; h < task.kv_heads; ++h) chunk(heads[h], base, first_row, end_row);
  }
}
