// Attention by tiles (AMX), of keys and values that bfloat16 holds without loss: all but f32. Queries are rounded to
// bfloat16, and so are weights, once they are multiplied with the scales of values; subnormal numbers count as zero.
// (What middles add comes of the queries as they were.) Included inside an anonymous namespace (see kernel_table.h),
// after attend_state.h and tiles_amx.h.
//
// A chunk is always multiplied as a whole, all 64 positions of it, for queries 16 at a time; what a query does not see
// has a weight of zero. A query's results do not depend on its neighbours in a tile, and what positions hold that it
// does not see cannot show, unless it is no finite number: then the rows of a task are multiplied apart.

constexpr std::int64_t kPairsOfChunk = kAttentionChunk / 2;

/// Bytes of a query, and of a query's weights, as they lie in place of their floats.
inline std::int64_t query_stride(const AttendState& s) {
  return s.width * 4;
}
constexpr std::int64_t kWeightStride = kAttentionChunk * 4;
/// Lines of a tile of keys: pairs of numbers of a head, in whole tiles.
inline std::int64_t key_lines(const AttendState& s) {
  return (s.head_dim + 31) / 32 * 16;
}

/// The memory of the next chunk's keys and values, which is asked for in sixteenths while this one is computed: a
/// processor has few requests under way, so that a burst of them would wait, and nothing is read where none are made.
/// Pages of more than a chunk, and what is beyond kMostPieces, are left to the processor.
class NextChunk {
 public:
  template <typename Element>
  void set(const AttendTask& task, const AttendState& s, std::int64_t base) {
    const KvLayer& kv = task.args->kv;
    const std::int64_t first = base + kAttentionChunk;
    if (first >= task.end || kAttentionChunk % kv.page_tokens != 0) return;
    const std::int64_t slab =
        elements_of<Element>(s.head_dim) * std::int64_t{kv.page_tokens} * static_cast<std::int64_t>(sizeof(Element));
    for (std::int64_t t = first; t < first + kAttentionChunk && t < task.end; t += kv.page_tokens) {
      add(kv_slab<Element>(task, kv.key_offset, t), slab);
      add(kv_slab<Element>(task, kv.value_offset, t), slab);
      if constexpr (!kScaled<Element>) continue;
      const std::byte* page = kv.pages + static_cast<std::size_t>(task.page_table[t / kv.page_tokens]) * kv.page_bytes;
      const std::int64_t scales = std::int64_t{kv.page_tokens} * static_cast<std::int64_t>(sizeof(float));
      for (std::int64_t middles = 0; middles <= (kHasMiddle<Element> ? 1 : 0); ++middles) {
        const std::int64_t place = (middles * task.args->kv_heads + task.kv_head) * scales;
        add(page + kv.key_scale_offset + place, scales);
        add(page + kv.value_scale_offset + place, scales);
      }
    }
    share_ = (lines_ + 15) / 16;
    enter(0);
  }

  /// Asks for so many sixteenths.
  void ask(std::int64_t shares) {
    for (std::int64_t lines = shares * share_; lines > 0; --lines) {
      if (at_ >= end_) {
        if (piece_ + 1 >= pieces_) return;
        enter(piece_ + 1);
      }
      __builtin_prefetch(at_, 0, 2);
      at_ += 64;
    }
  }

 private:
  void add(const void* start, std::int64_t bytes) {
    if (pieces_ == kMostPieces) return;
    start_[pieces_] = static_cast<const std::byte*>(start);
    bytes_[pieces_++] = bytes;
    lines_ += (bytes + 63) / 64;
  }
  void enter(std::int64_t piece) {
    piece_ = piece;
    at_ = start_[piece];
    end_ = at_ + bytes_[piece];
  }

  static constexpr std::int64_t kMostPieces = 64;
  const std::byte* start_[kMostPieces];
  std::int64_t bytes_[kMostPieces];
  std::int64_t pieces_ = 0, piece_ = 0, lines_ = 0, share_ = 0;
  const std::byte *at_ = nullptr, *end_ = nullptr;
};

/// Numbers of `first` in the lower halves of the lanes, of `second` in the upper: both are bfloat16 as floats.
inline __m512i side_by_side(Lanes first, Lanes second) {
  return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(_mm512_castps_si512(first.all), 16),
                                 _mm512_castps_si512(second.all));
}
template <typename Element>
inline __m512i line_of_pairs(const Element* first, const Element* second) {
  return side_by_side(load(first), load(second));
}
inline __m512i line_of_pairs(const Bf16* first, const Bf16* second) {
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first));
  const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second));
  const __m512i by_turns = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                            23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(by_turns, _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
}

/// Two numbers of the keys of 16 positions. `step`: elements from a number, or two, to the next.
template <typename Element>
inline __m512i line_of_keys(const Element* keys, std::int64_t step) {
  if constexpr (kNumbers<Element> == 2) {
    Lanes first, second;
    load_pairs(keys, first, second);
    return side_by_side(first, second);
  } else {
    return line_of_pairs(keys, keys + step);
  }
}

/// Keys of the chunk's blocks that have positions in `range` to s.key: [block][key_lines()][16 positions][2 numbers].
/// What the others hold is of no meaning.
template <typename Element>
inline void pair_up_keys(const AttendTask& task, const AttendState& s, std::int64_t base, ChunkRange range,
                         NextChunk& next) {
  const std::int64_t step = task.args->kv.page_tokens, lines = key_lines(s);
  const bool whole_blocks = step % 16 == 0;
  constexpr std::int64_t kPerLine = 2 / kNumbers<Element>;  // elements of a key
  const std::int64_t whole_lines = elements_of<Element>(s.head_dim) / kPerLine;
  for (std::int64_t block = range.low / 16; block <= range.high / 16; ++block) {
    next.ask(1);
    auto* target = reinterpret_cast<std::byte*>(s.key) + block * lines * 64;
    std::int64_t line = 0;
    if (whole_blocks) {
      const Element* keys = key_column<Element>(task, base + block * 16);
      for (; line < whole_lines; ++line, keys += kPerLine * step) {
        _mm512_store_si512(target + line * 64, line_of_keys(keys, step));
      }
      if (elements_of<Element>(s.head_dim) % kPerLine != 0) {
        _mm512_store_si512(target + line++ * 64, side_by_side(load(keys), broadcast(0.0f)));
      }
    } else {  // positions outside `range` may have no page
      const Element* columns[16];
      for (std::int64_t i = 0; i < 16; ++i) {
        const std::int64_t j = block * 16 + i;
        columns[i] = j >= range.low && j <= range.high ? key_column<Element>(task, base + j) : nullptr;
      }
      for (std::int64_t e = 0; e < elements_of<Element>(s.head_dim); e += kPerLine, ++line) {
        Element rows[2][16] = {};
        for (std::int64_t i = 0; i < 16; ++i) {
          if (columns[i] == nullptr) continue;
          rows[0][i] = columns[i][e * step];
          if (kPerLine == 2 && e + 1 < elements_of<Element>(s.head_dim)) rows[1][i] = columns[i][(e + 1) * step];
        }
        _mm512_store_si512(target + line * 64, line_of_keys(rows[0], 16));
      }
    }
    for (; line < lines; ++line) _mm512_store_si512(target + line * 64, _mm512_setzero_si512());
  }
}

/// Where the values of the chunk's positions in `range` lie; null for the others.
template <typename Element>
struct ValueRows {
  const Element* of[kAttentionChunk] = {};

  ValueRows(const AttendTask& task, std::int64_t base, ChunkRange range) {
    const std::int64_t page_tokens = task.args->kv.page_tokens, elements = elements_of<Element>(task.args->head_dim);
    for (std::int64_t j = range.low; j <= range.high;) {
      const std::int64_t in_page = page_tokens - (base + j) % page_tokens, rest = range.high + 1 - j;
      const Element* row = value_row<Element>(task, base + j);
      for (const std::int64_t end = j + (rest < in_page ? rest : in_page); j < end; ++j, row += elements) of[j] = row;
    }
  }
};

/// 32 numbers of the values of two positions, side by side: 16 of them to each line.
template <typename Element>
inline void pair_up(const Element* first, const Element* second, std::byte* line, std::byte* other) {
  constexpr int kHalf = 16 / kNumbers<Element>;
  _mm512_store_si512(line, line_of_pairs(first, second));
  _mm512_store_si512(other, line_of_pairs(first + kHalf, second + kHalf));
}
inline void pair_up(const Bf16* first, const Bf16* second, std::byte* line, std::byte* other) {
  const __m512i a = _mm512_loadu_si512(first), b = _mm512_loadu_si512(second);
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,  //
                                       39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  _mm512_store_si512(line, _mm512_permutex2var_epi16(a, low, b));
  _mm512_store_si512(other, _mm512_permutex2var_epi16(a, high, b));
}

/// Values of two positions, either of which may be missing, to their pair's lines: those of 16 numbers each are
/// `kPairsOfChunk` lines apart. For what is missing stands what codes of zero mean.
template <typename Element>
inline void pair_up_some(const Element* first, const Element* second, std::int64_t head_dim, std::byte* lines) {
  for (std::int64_t d = 0; d < head_dim; d += 16, lines += kPairsOfChunk * 64) {
    const std::int64_t place = d / kNumbers<Element>, count = head_dim - d < 16 ? head_dim - d : 16;
    const auto bytes = static_cast<std::size_t>(elements_of<Element>(count)) * sizeof(Element);
    Element copies[2][16] = {};
    if (first != nullptr) __builtin_memcpy(copies[0], first + place, bytes);
    if (second != nullptr) __builtin_memcpy(copies[1], second + place, bytes);
    _mm512_store_si512(lines, line_of_pairs(copies[0], copies[1]));
  }
}

/// Values of the positions in `range` to s.value: [width / 16][pairs of positions][16 numbers][2 positions]; for the
/// others, finite numbers, which meet a weight of zero.
template <typename Element>
inline void pair_up_values(const AttendTask& task, const AttendState& s, std::int64_t base, ChunkRange range,
                           NextChunk& next) {
  const std::int64_t head_dim = s.head_dim;
  const bool whole = head_dim % 32 == 0;
  const ValueRows<Element> now(task, base, range);
  auto* lines = reinterpret_cast<std::byte*>(s.value);
  constexpr std::int64_t kBlock = kPairsOfChunk * 64;
  for (std::int64_t pair = 0; pair < kPairsOfChunk; ++pair, lines += 64) {
    const Element *first = now.of[2 * pair], *second = now.of[2 * pair + 1];
    if (pair % 8 == 0) next.ask(1);
    if (!whole || first == nullptr || second == nullptr) {
      pair_up_some(first, second, head_dim, lines);
      continue;
    }
    std::byte* target = lines;
    for (std::int64_t d = 0; d < head_dim; d += 32, target += 2 * kBlock) {
      const std::int64_t place = d / kNumbers<Element>;
      pair_up(first + place, second + place, target, target + kBlock);
    }
  }
}

/// Whether all values of the chunk are finite.
inline bool finite_values(const AttendState& s) {
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  const auto* const lines = reinterpret_cast<const std::byte*>(s.value);
  __mmask32 beyond = 0;
  for (std::int64_t line = 0; line < s.width * kPairsOfChunk / 16; ++line) {
    const __m512i numbers = _mm512_and_si512(_mm512_load_si512(lines + line * 64), exponent);
    beyond |= _mm512_cmpeq_epi16_mask(numbers, exponent);
  }
  return beyond == 0;
}

/// `count` floats to bfloat16, in place, and zeros up to a multiple of 32.
inline void round_in_place(float* values, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += 32) {
    const Lanes first = load(values + i), second = i + 16 < count ? load(values + i + 16) : broadcast(0.0f);
    _mm512_store_si512(reinterpret_cast<std::uint16_t*>(values) + i,
                       reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second.all, first.all)));
  }
}

/// 2 to the power of numbers that are not positive; 0 for what would be subnormal, which is slow to compute and
/// rounded to zero anyway. The polynomial is within 1.5e-7 of 2^f for f in [0, 1), and 1 at 0; its coefficients
/// come from reweighted least squares of the relative error.
inline Lanes power_of_two_below(Lanes x) {
  constexpr int kLessItsFloor = 1;  // of _mm512_reduce_ps
  const Lanes f{_mm512_reduce_ps(x.all, kLessItsFloor)};
  Lanes p = fma(broadcast(0.00186713005f), f, broadcast(0.00901703071f));
  p = fma(p, f, broadcast(0.0557999127f));
  p = fma(p, f, broadcast(0.240164444f));
  p = fma(p, f, broadcast(0.693151295f));
  p = fma(p, f, broadcast(1.0f));
  const __mmask16 normal = _mm512_cmp_ps_mask(x.all, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);  // NaN too
  return {_mm512_maskz_scalef_ps(normal, p.all, x.all)};  // of its second operand it takes the floor
}

/// Scores of query i to weights exp(score - largest) in bfloat16, in place; zero is the weight of what it does not see,
/// whatever stands there. Scales and middles, and the result, as chunk_softmax() has them.
template <typename Element>
inline bool round_softmax(const AttendArgs& args, const AttendState& s, ChunkRange visible, const float* biases,
                          std::int64_t i) {
  constexpr int kBlocks = kAttentionChunk / 16;
  const std::uint64_t seen = (~std::uint64_t{0} >> (63 - visible.high)) & (~std::uint64_t{0} << visible.low);
  float* const score = s.score + i * kAttentionChunk;
  const __m512 nothing = _mm512_setzero_ps();
  Lanes v[kBlocks];
  MILLRACE_UNROLL for (int b = 0; b < kBlocks; ++b) {
    v[b] = capped(args, scaled_score<Element>(args, s, i, b * 16));
    if (biases != nullptr) v[b] = add(v[b], load(biases + b * 16));
    v[b].all =
        _mm512_mask_mov_ps(_mm512_set1_ps(-__builtin_inff()), static_cast<__mmask16>(seen >> (b * 16)), v[b].all);
  }
  s.part_largest[i] = reduce_max(max(max(v[0], v[1]), max(v[2], v[3])));
  if (leaves_out(args, s, visible, i)) return false;
  const Lanes origin = broadcast(s.part_largest[i] == -__builtin_inff() ? 0.0f : s.part_largest[i]);
  Lanes sum{nothing}, middle{nothing};
  MILLRACE_UNROLL for (int b = 0; b < kBlocks; ++b) {
    const auto mask = static_cast<__mmask16>(seen >> (b * 16));
    v[b] = power_of_two_below(mul(sub(v[b], origin), broadcast(1.44269504f)));
    sum = add(sum, v[b]);
    if (s.page_sum != nullptr) s.page_sum[i * kBlocks + b] = reduce_add(v[b]);
    // What is hidden may have a scale or a middle that is not finite.
    if constexpr (kHasMiddle<Element>) {
      middle.all = _mm512_mask3_fmadd_ps(v[b].all, load(s.value_middle + b * 16).all, middle.all, mask);
    }
    if constexpr (kScaled<Element>) v[b].all = _mm512_maskz_mul_ps(mask, v[b].all, load(s.value_scale + b * 16).all);
  }
  MILLRACE_UNROLL for (int b = 0; b < kBlocks; b += 2) {
    _mm512_store_si512(reinterpret_cast<std::uint16_t*>(score) + b * 16,
                       reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(v[b + 1].all, v[b].all)));
  }
  s.part_sum[i] = reduce_add(sum);
  if constexpr (kHasMiddle<Element>) s.part_middle[i] = reduce_add(middle);
  return true;
}

/// Scores of the tiles of queries that have some of [first, end).
inline void score_by_tiles(const AttendState& s, std::int64_t first, std::int64_t end) {
  const std::int64_t lines = key_lines(s), block = lines * 64, stride = query_stride(s);
  const auto* const keys = reinterpret_cast<const std::byte*>(s.key);
  for (std::int64_t tile = first / kTileSide * kTileSide; tile < end; tile += kTileSide) {
    const auto* const query = reinterpret_cast<const std::byte*>(s.query + tile * s.width);
    auto* const score = reinterpret_cast<std::byte*>(s.score + tile * kAttentionChunk);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (std::int64_t line = 0; line < lines; line += 16) {
      const std::byte* const k = keys + line * 64;
      _tile_loadd(4, query + line * 4, stride);
      _tile_loadd(6, k, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, k + block, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(6, k + 2 * block, 64);
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(7, k + 3 * block, 64);
      _tile_dpbf16ps(3, 4, 7);
    }
    _tile_stored(0, score, kWeightStride);
    _tile_stored(1, score + 64, kWeightStride);
    _tile_stored(2, score + 128, kWeightStride);
    _tile_stored(3, score + 192, kWeightStride);
  }
}

/// Weighted values of a tile of queries: rows of `part`, `stride` bytes apart. By four tiles of sums, none of which
/// waits for its own last product.
inline void weigh_tile(const AttendState& s, std::int64_t tile, std::byte* part, std::int64_t stride) {
  const auto* const weights = reinterpret_cast<const std::byte*>(s.score + tile * kAttentionChunk);
  constexpr std::int64_t kBlock = kPairsOfChunk * 64, kHalf = kBlock / 2;
  _tile_loadd(4, weights, kWeightStride);
  _tile_loadd(5, weights + 64, kWeightStride);
  const auto* values = reinterpret_cast<const std::byte*>(s.value);
  std::int64_t blocks = s.width / 16;
  for (; blocks >= 4; blocks -= 4, values += 4 * kBlock, part += 4 * 64) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(6, values, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, values + kBlock, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(6, values + 2 * kBlock, 64);
    _tile_dpbf16ps(2, 4, 6);
    _tile_loadd(7, values + 3 * kBlock, 64);
    _tile_dpbf16ps(3, 4, 7);
    _tile_loadd(6, values + kHalf, 64);
    _tile_dpbf16ps(0, 5, 6);
    _tile_loadd(7, values + kBlock + kHalf, 64);
    _tile_dpbf16ps(1, 5, 7);
    _tile_loadd(6, values + 2 * kBlock + kHalf, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_loadd(7, values + 3 * kBlock + kHalf, 64);
    _tile_dpbf16ps(3, 5, 7);
    _tile_stored(0, part, stride);
    _tile_stored(1, part + 64, stride);
    _tile_stored(2, part + 128, stride);
    _tile_stored(3, part + 192, stride);
  }
  for (; blocks > 0; --blocks, values += kBlock, part += 64) {
    _tile_zero(0);
    _tile_loadd(6, values, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, values + kHalf, 64);
    _tile_dpbf16ps(0, 5, 7);
    _tile_stored(0, part, stride);
  }
}

/// Weighted values of the queries [first, end), and of others of their tiles.
inline void weigh_by_tiles(const AttendState& s, std::int64_t first, std::int64_t end) {
  finish_stores(s.score);
  for (std::int64_t tile = first / kTileSide * kTileSide; tile < end; tile += kTileSide) {
    weigh_tile(s, tile, reinterpret_cast<std::byte*>(s.part + tile * s.width), query_stride(s));
  }
  finish_stores(s.part);
}

/// The same of no others: their tiles' results go to s.key first, which has room for 64 rows.
inline void weigh_apart(const AttendState& s, std::int64_t first, std::int64_t end) {
  finish_stores(s.score);
  for (std::int64_t tile = first / kTileSide * kTileSide; tile < end; tile += kTileSide) {
    weigh_tile(s, tile, reinterpret_cast<std::byte*>(s.key), query_stride(s));
    finish_stores(s.key);
    for (std::int64_t i = tile < first ? first : tile; i < end && i < tile + kTileSide; ++i) {
      for (std::int64_t d = 0; d < s.width; d += 16) {
        store(s.part + i * s.width + d, load(s.key + (i - tile) * s.width + d));
      }
    }
  }
}

template <typename Element>
inline void attend_chunk_by_tiles(const AttendTask& task, const AttendState& s, std::int64_t base,
                                  std::int64_t first_row, std::int64_t end_row) {
  const AttendArgs& args = *task.args;
  const auto visible_to = [&](std::int64_t row) { return visible_range(args, base, task.position + row); };
  const ChunkRange range{visible_to(first_row).low, visible_to(end_row - 1).high};
  const std::int64_t first = first_row * s.group, end = end_row * s.group;
  NextChunk next;
  next.set<Element>(task, s, base);
  pair_up_keys<Element>(task, s, base, range, next);
  finish_stores(s.key);
  next.ask(1);
  score_by_tiles(s, first, end);
  finish_stores(s.score);
  next.ask(1);
  gather_all_scales<Element>(task, s, base, range);
  bool wanted = false;
  for (std::int64_t row = first_row; row < end_row; ++row) {
    const ChunkRange visible = visible_to(row);
    for (std::int64_t i = row * s.group; i < (row + 1) * s.group; ++i) {
      if (i - first < 4) next.ask(1);
      wanted |= round_softmax<Element>(args, s, visible, biases_of(task, base), i);
    }
  }
  if (!wanted) {
    next.ask(32);
    return keep_page_sums(task, s, base, first, end);
  }
  pair_up_values<Element>(task, s, base, range, next);
  next.ask(1);
  // What all rows see shows in all of them anyway, and codes with scales are finite.
  const bool alike = visible_to(end_row - 1).low == range.low && visible_to(first_row).high == range.high;
  if (kScaled<Element> || alike || finite_values(s)) {
    weigh_by_tiles(s, first, end);
  } else {
    for (std::int64_t row = first_row; row < end_row; ++row) {
      pair_up_values<Element>(task, s, base, visible_to(row), next);
      weigh_apart(s, row * s.group, (row + 1) * s.group);
    }
  }
  next.ask(16);
  if constexpr (kHasMiddle<Element>) add_middles(s, first, end - first);
  keep_page_sums(task, s, base, first, end);
  fold_chunk(s, first, end);
}

template <typename Element>
inline void attend_to_by_tiles(const AttendTask& task) {
  AttendHead heads[kAttendHeads];
  divide_into_heads(task, heads);
  for (std::int32_t h = 0; h < task.kv_heads; ++h) {
    const AttendState& s = heads[h].state;
    begin_queries(heads[h].task, s);
    if constexpr (kHasMiddle<Element>) sum_queries(heads[h].task, s);
    for (std::int64_t i = 0; i < task.rows * s.group; ++i) round_in_place(s.query + i * s.width, s.width);
  }
  const std::int64_t queries = task.rows * heads->state.group;
  configure_tiles(64, queries < kTileSide ? queries : kTileSide);
  for_each_chunk(task, heads,
                 [](const AttendHead& head, std::int64_t base, std::int64_t first_row, std::int64_t end_row) {
                   attend_chunk_by_tiles<Element>(head.task, head.state, base, first_row, end_row);
                 });
  _tile_release();
  for (std::int32_t h = 0; h < task.kv_heads; ++h) end_queries(heads[h].task, heads[h].state);
}

void attend_by_tiles(const AttendTask& task) {
  switch (task.args->kv.format) {
    case KvFormat::f32:
      return;  // attend_rounded
    case KvFormat::bf16:
      return attend_to_by_tiles<Bf16>(task);
    case KvFormat::int8:
      return attend_to_by_tiles<Int8>(task);
    case KvFormat::fp8_e4m3:
      return attend_to_by_tiles<E4m3>(task);
    case KvFormat::fp8_e4m3_unscaled:
      return attend_to_by_tiles<E4m3Unscaled>(task);
    case KvFormat::fp8_e5m2:
      return attend_to_by_tiles<E5m2>(task);
    case KvFormat::int4:
      return attend_to_by_tiles<Int4>(task);
  }
}
