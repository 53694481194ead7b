// What rows give to pages, out of the attention that is computed anyway (ForwardBatch::masses).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernel_table.h"

namespace millrace {

class MassAdder {
 public:
  /// For the tasks of a batch's layer on so many threads.
  void begin(const ForwardBatch& batch, const AttendArgs& args, int threads);

  /// Where a task, or tasks that resume one another with `chunks` chunks in all, leave their sums; null where the last
  /// of the task's rows is not measured. The thread's until its next call.
  AttendMasses* of(const AttendTask& task, std::int64_t chunks, int thread);

  /// What they have left, page by page, to the entries [pages] of the sequence's table; -1: none is there.
  void add(const AttendTask& task, const AttendMasses& masses, std::span<const std::int32_t> entries, int thread);
  /// The same with the entries that the task's table has.
  void add(const AttendTask& task, const AttendMasses& masses, int thread);

 private:
  struct Scratch {
    AttendMasses masses;
    std::vector<float> pages, largest;
    std::vector<std::uint64_t> sums;
    std::vector<std::int32_t> entries;
  };

  const ForwardBatch* batch_ = nullptr;  // where some rows of it are measured
  std::vector<std::int32_t> sequence_of_row_;
  std::vector<Scratch> scratch_;  // of each thread
};

}  // namespace millrace
