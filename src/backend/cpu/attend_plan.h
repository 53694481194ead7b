// How the rows of a batch are cut into tasks of attention.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernel_table.h"

namespace millrace {

/// Rows that a task has at most.
std::int64_t attend_block_rows(const AttendArgs& args);

/// Blocks of rows, each to be computed for every kv head: AttendTasks without kv_head and scratch. Kept between calls
/// so that steps do not allocate.
class AttendPlan {
 public:
  /// Plans for `threads` threads; a set of batch.shared is used where that saves time. Aborts where a position that a
  /// row sees has no page, and where batch.shared does not describe the page tables. The plan points to `batch` and
  /// `args`.
  void make(const ForwardBatch& batch, const AttendArgs& args, int threads);

  /// Those that start from nothing: the shared prefixes, then the sequences that share none. The longest go before the
  /// others, so that no thread is left alone with one.
  [[nodiscard]] std::span<const AttendTask> first() const { return first_; }
  /// What remains of the sequences that share a prefix, to be computed when all of first() is.
  [[nodiscard]] std::span<const AttendTask> resumed() const { return resumed_; }

 private:
  void add_shared(const ForwardBatch& batch, const AttendArgs& args, const SharedPrefix& set, int threads);

  std::vector<AttendTask> first_, resumed_;
  std::vector<std::int64_t> shared_tokens_;  // of each sequence: what a block of several sequences takes in
  std::vector<float> state_;
};

}  // namespace millrace
