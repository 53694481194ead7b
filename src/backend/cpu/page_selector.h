// Rows that read some pages of the past: which, and the tasks of attention that this makes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernel_table.h"
#include "core/thread_pool.h"
#include "kv/page_choice.h"

namespace millrace {

/// Kept between calls so that steps do not allocate.
class PageSelector {
 public:
  PageSelector(const KernelTable& kernels, ThreadPool& pool) : kernels_(&kernels), pool_(&pool) {}

  /// Looks for rows of the batch that select. `batch` and `args` must stay.
  void begin(const ForwardBatch& batch, const AttendArgs& args);

  /// Chooses pages for the next of these rows, as many as fit the memory that this keeps. The tasks, one for each row
  /// and kv head, point to `args` and into this until the next call, and lack scratch. None: all rows are done.
  std::span<const AttendTask> next();

  /// What the rows' bounds take, in positions of keys and values of all queries.
  [[nodiscard]] double bounds_read() const;

 private:
  struct Row {
    std::int64_t row = 0, position = 0;  // in the batch, in its sequence
    const std::int32_t* page_table = nullptr;
    PageCandidates candidates;
  };

  void score(std::span<const Row> rows);
  void choose(std::span<const Row> rows);

  const KernelTable* kernels_;
  ThreadPool* pool_;
  const AttendArgs* args_ = nullptr;
  std::vector<Row> rows_;
  std::size_t done_ = 0;               // of rows_
  std::int64_t pages_ = 0;             // that a row reads at most
  std::int64_t candidates_ = 0;        // of a row at most
  std::vector<std::int32_t> entries_;  // [rows][kv heads][pages_]: of the row's page table
  std::vector<std::int32_t> tables_;   // [rows][kv heads][pages_]: pages
  std::vector<AttendTask> tasks_;
  std::vector<float> scores_;   // [rows][heads][candidates_]
  std::vector<float> scratch_;  // of each thread
  std::vector<PageChooser> choosers_;
};

}  // namespace millrace
