// score_cells() by tiles (AMX), of keys that bfloat16 holds without loss but for their scales: queries, and keys times
// their scales, are rounded to bfloat16. Included inside an anonymous namespace (see kernel_table.h), after
// tiles_amx.h and cells.h.
//
// A tile of sums has a line for each of 16 pages, and in it 16 columns. What pages hold is a line of inputs as it
// stands; queries are laid out once for all pages.

constexpr std::int64_t kPageTiles = 2;  // taken together, so that queries are loaded half as often

/// Numbers of a page's keys: a whole number of products.
inline std::int64_t cell_width(const CellTask& task) {
  return round_up(task.args->head_dim, 2) * kCell;
}

/// Queries as columns: [blocks][columns / 16][width / 2][16 columns][2], zeros where there is no row.
inline void pair_up_cells(const CellTask& task, std::int64_t width, std::uint16_t* target) {
  const AttendArgs& args = *task.args;
  const std::int64_t head_dim = args.head_dim, group = args.heads / args.kv_heads;
  const std::int64_t columns = cell_columns(group), numbers = task.blocks() * columns * width;
  for (std::int64_t i = 0; i < numbers; i += 32) _mm512_store_si512(target + i, _mm512_setzero_si512());
  for (std::int64_t row = 0; row < task.rows; ++row) {
    const std::int64_t cell = row / kCell % kQueryCells, place = row_of_cell(row % kCell);
    const float* q = args.q + (task.batch_row + row) * args.q_stride + task.kv_head * group * head_dim;
    for (std::int64_t g = 0; g < group; ++g, q += head_dim) {
      const std::int64_t column = row / kQueryBlock * columns + g * kQueryCells + cell;
      std::uint16_t* const lines =
          target + column / 16 * 16 * width + place / 2 * 32 + column % 16 * 2 + place % 2;  // of number 0
      for (std::int64_t d = 0; d < head_dim; d += 16) {
        alignas(32) std::uint16_t rounded[16];
        const std::int64_t count = head_dim - d < 16 ? head_dim - d : 16;
        _mm256_store_si256(reinterpret_cast<__m256i*>(rounded),
                           reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(load_part(q + d, count).all)));
        for (std::int64_t i = 0; i < count; ++i) lines[(d + i) * kCell * 16] = rounded[i];
      }
    }
  }
}

/// A page's keys in bfloat16, [head_dim][kCell], and zeros behind them. `spare`: floats for as many and kCell more.
template <typename Element>
inline void round_page(const CellTask& task, std::int64_t page, std::int64_t width, float* spare,
                       std::uint16_t* target) {
  const AttendArgs& args = *task.args;
  const std::int64_t numbers = args.head_dim * kCell;
  if constexpr (__is_same(Element, Bf16)) {
    const KvLayer& kv = args.kv;
    const std::byte* const start = kv.pages + static_cast<std::size_t>(task.page_table[page]) * kv.page_bytes;
    const auto* keys = reinterpret_cast<const std::uint16_t*>(start + kv.key_offset) + task.kv_head * numbers;
    for (std::int64_t i = 0; i < numbers; i += 16) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(target + i),
                         _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys + i)));
    }
  } else {
    widen_page<Element>(task, page, spare);
    for (std::int64_t i = 0; i < numbers; i += 16) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(target + i),
                         reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(load(spare + i).all)));
    }
  }
  for (std::int64_t i = numbers; i < width; i += 16) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(target + i), _mm256_setzero_si256());
  }
}

template <typename Element>
inline void score_cells_by_tiles_of(const CellTask& task) {
  const AttendArgs& args = *task.args;
  const std::int64_t width = cell_width(task), columns = task.blocks() * cell_columns(args.heads / args.kv_heads);
  constexpr std::int64_t kPages = kPageTiles * kTileSide;
  auto* const queries = reinterpret_cast<std::uint16_t*>(task.scratch);
  std::uint16_t* const keys = queries + columns * width;
  float* const spare = reinterpret_cast<float*>(keys + kPages * width);
  float* const sums = spare + width + kCell;  // of pages that do not exist
  pair_up_cells(task, width, queries);
  finish_stores(queries);
  const std::int64_t key_stride = width * 2, score_stride = columns * 4;
  configure_tiles(64);
  for (std::int64_t page = task.first; page < task.end; page += kPages) {
    const std::int64_t count = task.end - page < kPages ? task.end - page : kPages;
    for (std::int64_t p = 0; p < count; ++p) round_page<Element>(task, page + p, width, spare, keys + p * width);
    finish_stores(keys);
    const bool second = count > kTileSide;
    for (std::int64_t column = 0; column < columns; column += 16) {
      const auto* const query = reinterpret_cast<const std::byte*>(queries + column * width);
      const auto* const key = reinterpret_cast<const std::byte*>(keys);
      const std::byte* const other = key + kTileSide * key_stride;
      _tile_zero(0);
      _tile_zero(1);
      for (std::int64_t i = 0; i < width; i += 32) {
        _tile_loadd(6, query + i * 32, 64);
        _tile_loadd(4, key + i * 2, key_stride);
        _tile_dpbf16ps(0, 4, 6);
        if (second) {
          _tile_loadd(5, other + i * 2, key_stride);
          _tile_dpbf16ps(1, 5, 6);
        }
      }
      float* const scores = task.scores + (page - task.first) * columns + column;
      if (count == kPages) {
        _tile_stored(0, scores, score_stride);
        _tile_stored(1, scores + kTileSide * columns, score_stride);
        continue;
      }
      _tile_stored(0, sums, 64);
      if (second) _tile_stored(1, sums + kTileSide * 16, 64);
      finish_stores(sums);
      for (std::int64_t p = 0; p < count; ++p) store(scores + p * columns, load(sums + p * 16));
    }
  }
  finish_stores(task.scores);
  _tile_release();
}

void score_cells_by_tiles(const CellTask& task) {
  switch (task.args->kv.format) {
    case KvFormat::f32:
      return;  // score_cells_rounded
    case KvFormat::bf16:
      return score_cells_by_tiles_of<Bf16>(task);
    case KvFormat::int8:
      return score_cells_by_tiles_of<Int8>(task);
    case KvFormat::fp8_e4m3:
      return score_cells_by_tiles_of<E4m3>(task);
    case KvFormat::fp8_e4m3_unscaled:
      return score_cells_by_tiles_of<E4m3Unscaled>(task);
    case KvFormat::fp8_e5m2:
      return score_cells_by_tiles_of<E5m2>(task);
    case KvFormat::int4:
      return score_cells_by_tiles_of<Int4>(task);
  }
}
