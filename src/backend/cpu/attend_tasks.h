// What kernels of attention are asked for: a task each. Part of kernel_table.h, whose rules hold here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/backend.h"

namespace millrace {

/// Outputs of a panel: the lanes of all kernels.
inline constexpr std::int64_t kPanelRows = 16;

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// What pages of 16 positions have of the attention of a task's queries.
struct AttendMasses {
  float* pages = nullptr;    // [kv heads][queries][chunks][chunk / 16]: parts of what a query gives in all
  float* largest = nullptr;  // [kv heads][queries][chunks]: of scores, to the kernel's use
  std::int64_t chunks = 0;
  std::int32_t first_kv_head = 0;
  // The task's first chunk among them: of tasks that resume one another each leaves what it takes in, and the last,
  // which does not suspend, makes parts of all.
  std::int64_t first_chunk = 0;
};

/// Consecutive rows of the batch, all heads of some kv heads, take in the positions [begin, end) of one page table, as
/// far as each row sees them. Either the rows are of one sequence, or all of them see all of [begin, end).
///
/// A row whose positions are divided between two tasks keeps its state from the first, which suspends, to the second,
/// which resumes: its sum of weighted values in args->out, its maximum and sum in `state`. Nothing is rounded on the
/// way, so the result has the bits that one task would give it. A task may also resume with another table.
struct AttendTask {
  const AttendArgs* args = nullptr;
  const std::int32_t* page_table = nullptr;
  std::int64_t batch_row = 0;  // of the first row
  std::int64_t position = 0;   // of the first row; at least `end` where the rows are of several sequences
  std::int64_t rows = 0;
  std::int64_t begin = 0;  // a multiple of kAttentionChunk
  std::int64_t end = 0;    // at most position + rows; if another goes on in this table, a multiple of kAttentionChunk
  bool resume = false;     // from the state after [0, begin)
  bool suspend = false;    // leave the state, not the result
  float* state = nullptr;  // [rows of the batch][heads][2]
  // Queries from all over the batch instead: `rows` of them, each by its row times heads plus its head. All see all of
  // [begin, end), and keys and values are those of one kv head (args->kv_heads is 1).
  const std::int32_t* queries = nullptr;
  // [rows * group][head_dim], instead of those in args->q; of one kv head.
  const float* turned = nullptr;
  // [end], added to scores after a soft cap: logarithms of the weights of positions, minus infinity for those that do
  // not count. Where there are such, [begin, end) is whole chunks, and all queries see all of it.
  const float* biases = nullptr;
  std::int64_t* left_out = nullptr;        // positions whose values a query has left out are added; null: not counted
  std::int32_t kv_head = 0, kv_heads = 1;  // the first, and how many: at most kAttendHeads
  // Where they are wanted; only of a task that begins at 0, without a window.
  const AttendMasses* masses = nullptr;
  const std::int32_t* entries =
      nullptr;               // of the sequence's page table, for each of page_table; null: they are the same
  float* scratch = nullptr;  // attend_scratch(rows * group, head_dim, kv_heads) floats, 64-byte aligned
};
inline constexpr std::int32_t kAttendHeads = 8;

/// Floats of scratch for `queries` (rows times heads of a kv head) of each of `kv_heads`.
constexpr std::int64_t attend_scratch(std::int64_t queries, std::int64_t head_dim, std::int64_t kv_heads) {
  const std::int64_t width = round_up(head_dim, kPanelRows);
  const std::int64_t padded = round_up(queries, kPanelRows);
  // The chunk's results, scores and their sums by 16, its keys, values, their scales and middles, and what is kept of
  // queries meanwhile; of each head queries, results and what is kept of them for all chunks.
  return padded * (width + kAttentionChunk + kAttentionChunk / 16 + 5) + 2 * kAttentionChunk * (width + 2) +
         kv_heads * padded * (2 * width + 3);
}

/// What the keys of a full page reach in each dimension, to where the layer keeps it.
struct BoundTask {
  const KvLayer* kv = nullptr;
  std::int32_t kv_heads = 0, head_dim = 0;
  std::int32_t page = 0;
};

/// What scores of a row's queries, without args->scale, reach at most with the keys of pages [first, end) of a table.
struct PageScoreTask {
  const AttendArgs* args = nullptr;
  const std::int32_t* page_table = nullptr;
  std::int64_t row = 0;  // of the batch
  std::int64_t first = 0, end = 0;
  float* scores = nullptr;  // [heads][stride], those of `first` at [0]
  std::int64_t stride = 0;
  float* scratch = nullptr;  // page_score_scratch() floats
};

constexpr std::int64_t page_score_scratch(std::int64_t heads, std::int64_t head_dim) {
  return 2 * heads * round_up(head_dim, kPanelRows);
}

/// Positions of a cell of keys: a page, and of a cell of rows.
inline constexpr std::int64_t kCell = 16;
inline constexpr std::int64_t kQueryCells = kQueryBlock / kCell;

/// Columns of scores of a block of rows: g * kQueryCells + c belongs to cell c of query head g of the kv head. Those
/// behind the last head's mean nothing.
constexpr std::int64_t cell_columns(std::int64_t group) {
  return round_up(group * kQueryCells, kPanelRows);
}
/// Blocks that are scored together: keys are read once for them.
inline constexpr std::int64_t kCellBlocks = 4;

/// Of each cell of rows and each page, the sum of the products along an antidiagonal: row 15 of the cell with position
/// 0 of the page, row 14 with position 1, and so on; of those that there are. Pages must be full, of kCell positions.
struct CellTask {
  const AttendArgs* args = nullptr;
  const std::int32_t* page_table = nullptr;
  std::int64_t batch_row = 0, rows = 0;  // of blocks one behind the other, at most kCellBlocks; the last may be shorter
  std::int32_t kv_head = 0;
  std::int64_t first = 0, end = 0;  // pages
  float* scores = nullptr;          // [end - first][blocks][cell_columns(group)]
  float* scratch = nullptr;         // cell_scratch(group, head_dim) floats, 64-byte aligned

  [[nodiscard]] constexpr std::int64_t blocks() const { return (rows + kQueryBlock - 1) / kQueryBlock; }
};

/// Columns of queries, and pages: some as floats, or more in half of that. Each has room for one more number of the
/// head. What becomes of pages that do not exist.
constexpr std::int64_t cell_scratch(std::int64_t group, std::int64_t head_dim) {
  return (kCellBlocks * cell_columns(group) + 2 * kPanelRows) * (head_dim + 1) * kCell + 2 * kPanelRows * kPanelRows;
}

/// What part of attention blocks of keys have for each query head of a kv head, by the scores of `pages` pages, which
/// are used up. Of the pages `history` are before the rows, and the others, as far as they are full, theirs: cell c
/// sees the first c + 1 of those.
struct CellWeightTask {
  float* scores = nullptr;  // [pages][score_stride], of which cell_columns(group) are the block's
  std::int64_t score_stride = 0;
  std::int64_t pages = 0, history = 0;
  std::int64_t rows = 0, group = 0;
  float scale = 0.0f;       // of a product of a query and a key
  float* shares = nullptr;  // [group][stride], of blocks of keys from the sequence's start on
  std::int64_t stride = 0;
};

}  // namespace millrace
