// Cells of a prompt's rows and of keys: scores by antidiagonals (Xu et al. 2025, arXiv 2503.16428), and what part of
// attention blocks of keys have by them. Included inside an anonymous namespace (see kernel_table.h), after
// attend_state.h and cells.h.

/// The number of rows that cell `cell` of the block has.
inline std::int64_t rows_of_cell(std::int64_t rows, std::int64_t cell) {
  const std::int64_t left = rows - cell * kCell;
  return left < 0 ? 0 : left < kCell ? left : kCell;
}

/// Queries as columns: [blocks][columns][head_dim][kCell], zeros where there is no row.
inline void arrange_cells(const CellTask& task, float* target) {
  const AttendArgs& args = *task.args;
  const std::int64_t head_dim = args.head_dim, group = args.heads / args.kv_heads, width = head_dim * kCell;
  const std::int64_t columns = cell_columns(group);
  for (std::int64_t i = 0; i < task.blocks() * columns * width; i += 16) store(target + i, broadcast(0.0f));
  for (std::int64_t row = 0; row < task.rows; ++row) {
    const std::int64_t cell = row / kCell % kQueryCells, place = row_of_cell(row % kCell);
    const float* q = args.q + (task.batch_row + row) * args.q_stride + task.kv_head * group * head_dim;
    for (std::int64_t g = 0; g < group; ++g, q += head_dim) {
      float* column = target + (row / kQueryBlock * columns + g * kQueryCells + cell) * width + place;
      for (std::int64_t d = 0; d < head_dim; ++d) column[d * kCell] = q[d];
    }
  }
}

constexpr std::int64_t kCellPages = 4, kCellQueries = 4;  // whose products run side by side

inline void multiply_cells(const float* queries, std::int64_t query_stride, const float* keys, std::int64_t key_stride,
                           std::int64_t width, Lanes (&sums)[kCellPages][kCellQueries]) {
  MILLRACE_UNROLL for (int p = 0; p < kCellPages; ++p) {
    MILLRACE_UNROLL for (int q = 0; q < kCellQueries; ++q) sums[p][q] = broadcast(0.0f);
  }
  for (std::int64_t i = 0; i < width; i += 16) {
    Lanes key[kCellPages];
    MILLRACE_UNROLL for (int p = 0; p < kCellPages; ++p) key[p] = load(keys + p * key_stride + i);
    MILLRACE_UNROLL for (int q = 0; q < kCellQueries; ++q) {
      const Lanes query = load(queries + q * query_stride + i);
      MILLRACE_UNROLL for (int p = 0; p < kCellPages; ++p) sums[p][q] = fma(query, key[p], sums[p][q]);
    }
  }
}

template <typename Element>
inline void score_cells_of(const CellTask& task) {
  const AttendArgs& args = *task.args;
  const std::int64_t width = args.head_dim * kCell, columns = task.blocks() * cell_columns(args.heads / args.kv_heads);
  const std::int64_t key_stride = width + kCell;
  float* const queries = task.scratch;
  float* const keys = queries + columns * width;
  arrange_cells(task, queries);
  for (std::int64_t page = task.first; page < task.end; page += kCellPages) {
    const std::int64_t count = task.end - page < kCellPages ? task.end - page : kCellPages;
    for (std::int64_t p = 0; p < kCellPages; ++p) {  // the last one again where there are fewer
      widen_page<Element>(task, page + (p < count ? p : count - 1), keys + p * key_stride);
    }
    float* const scores = task.scores + (page - task.first) * columns;
    for (std::int64_t q = 0; q < columns; q += kCellQueries) {
      Lanes sums[kCellPages][kCellQueries];
      multiply_cells(queries + q * width, width, keys, key_stride, width, sums);
      for (std::int64_t p = 0; p < count; ++p) {
        for (std::int64_t i = 0; i < kCellQueries; ++i) scores[p * columns + q + i] = reduce_add(sums[p][i]);
      }
    }
  }
}

void score_cells(const CellTask& task) {
  switch (task.args->kv.format) {
    case KvFormat::f32:
      return score_cells_of<float>(task);
    case KvFormat::bf16:
      return score_cells_of<Bf16>(task);
    case KvFormat::int8:
      return score_cells_of<Int8>(task);
    case KvFormat::fp8_e4m3:
      return score_cells_of<E4m3>(task);
    case KvFormat::fp8_e4m3_unscaled:
      return score_cells_of<E4m3Unscaled>(task);
    case KvFormat::fp8_e5m2:
      return score_cells_of<E5m2>(task);
    case KvFormat::int4:
      return score_cells_of<Int4>(task);
  }
}

/// Softmax of the scores of a cell of rows over the cells of keys that it sees, and of it the parts of blocks, the mean
/// of all cells. Columns lie side by side, 16 at a time.
void weigh_cells(const CellWeightTask& task) {
  constexpr std::int64_t kPagesOfBlock = kKeyBlock / kCell;
  const std::int64_t columns = task.score_stride, blocks = task.history / kPagesOfBlock;
  const std::int64_t cells = (task.rows + kCell - 1) / kCell;
  for (std::int64_t i = 0; i < task.group * blocks; ++i) task.shares[i / blocks * task.stride + i % blocks] = 0.0f;
  for (std::int64_t first = 0; first < task.group * kQueryCells; first += 16) {
    float factor[16], last[16], part[16];  // of a score; the last page of the block that it sees; of the cell
    for (std::int64_t i = 0; i < 16; ++i) {
      const std::int64_t cell = (first + i) % kQueryCells, rows = rows_of_cell(task.rows, cell);
      const bool there = rows > 0 && (first + i) / kQueryCells < task.group;
      factor[i] = there ? task.scale / static_cast<float>(rows) : 0.0f;
      last[i] = static_cast<float>(task.history + cell);
      part[i] = there ? 1.0f / static_cast<float>(cells) : 0.0f;
    }
    const Lanes by = load(factor), to = load(last), nothing = broadcast(-__builtin_inff());
    float* const scores = task.scores + first;
    const auto scaled = [&](std::int64_t page) {
      const Lanes score = mul(load(scores + page * columns), by);
      return page < task.history ? score : select_less(to, broadcast(static_cast<float>(page)), nothing, score);
    };
    Lanes largest = nothing;
    for (std::int64_t page = 0; page < task.pages; ++page) largest = max(scaled(page), largest);
    Lanes sum = broadcast(0.0f);
    for (std::int64_t page = 0; page < task.pages; ++page) {
      const Lanes weight = weight_of(sub(scaled(page), largest));
      if (page < task.history) store(scores + page * columns, weight);
      sum = add(sum, weight);
    }
    const Lanes whole = div(load(part), sum);
    for (std::int64_t block = 0; block < blocks; ++block) {
      const float* of_block = scores + block * kPagesOfBlock * columns;
      Lanes share = load(of_block);
      for (std::int64_t p = 1; p < kPagesOfBlock; ++p) share = add(share, load(of_block + p * columns));
      float shares[16];
      store(shares, mul(share, whole));
      for (std::int64_t i = 0; i < 16 && first + i < task.group * kQueryCells; ++i) {
        task.shares[(first + i) / kQueryCells * task.stride + block] += shares[i];
      }
    }
  }
}
