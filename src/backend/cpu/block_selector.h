// Rows of prompts that read some blocks of the past: which, and the tasks of attention that this makes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/cpu/kernel_table.h"
#include "backend/selected_pages.h"
#include "core/thread_pool.h"
#include "kv/block_choice.h"

namespace millrace {

/// Kept between calls so that steps do not allocate.
class BlockSelector {
 public:
  BlockSelector(const KernelTable& kernels, ThreadPool& pool) : kernels_(&kernels), pool_(&pool) {}

  /// Looks for blocks of rows of the batch that select. `rounded`: queries are rounded for attention, and so for this.
  /// `task_rows`: of a task at most. `batch` and `args` must stay.
  void begin(const ForwardBatch& batch, const AttendArgs& args, bool rounded, std::int64_t task_rows);

  /// Chooses for the next of these blocks, as many as fit the memory that this keeps. The tasks point to `args` and
  /// into this until the next call, and lack scratch. None: all are done.
  std::span<const AttendTask> next();

  /// What scores have multiplied, in positions of all queries: a sixteenth of what products of queries and keys would.
  [[nodiscard]] double scores_read() const;

 private:
  struct Block {
    std::int64_t row = 0, rows = 0;  // of the batch
    std::int64_t position = 0;       // of its first row
    const std::int32_t* page_table = nullptr;
    BlockCandidates candidates;
    float* scores = nullptr;  // of kv head 0
    std::int64_t score_stride = 0;

    [[nodiscard]] std::int64_t history() const { return position / kCell; }              // pages before the rows
    [[nodiscard]] std::int64_t full_pages() const { return (position + rows) / kCell; }  // those, and of the rows
  };

  /// Blocks of one sequence, one behind the other, that are scored together.
  struct Set {
    std::size_t first = 0, blocks = 0;  // of those that are looked at
  };

  void score(std::span<Block> blocks);
  void choose(std::span<const Block> blocks);
  void choose(const Block& block, std::int64_t index, std::int64_t kv_head, BlockChooser& chooser);

  const KernelTable* kernels_;
  ThreadPool* pool_;
  const AttendArgs* args_ = nullptr;
  bool rounded_ = false;
  std::int64_t task_rows_ = 0;
  std::vector<Block> blocks_;
  std::size_t done_ = 0;               // of blocks_
  std::int64_t pages_ = 0;             // that a block's rows see at most
  std::int64_t cuts_ = 0;              // tasks that the rows of a block make at most, for a kv head
  std::vector<std::int32_t> entries_;  // [blocks][kv heads][pages_]: of the sequence's page table
  std::vector<std::int32_t> tables_;   // [blocks][kv heads][pages_]: pages
  std::vector<AttendTask> tasks_;      // [blocks][kv heads][cuts_], then without those that have no rows
  std::vector<Set> sets_;
  std::vector<float> scores_;   // [sets][kv heads][pages_][blocks of the set][columns]
  std::vector<float> shares_;   // [blocks][kv heads][group][pages_ / 4 + 1]
  std::vector<float> scratch_;  // of each thread
  std::vector<BlockChooser> choosers_;
};

}  // namespace millrace
