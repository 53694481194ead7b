// How much of the past attention has read, of what its rows see (AttendCounts).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernel_table.h"

namespace millrace {

class ReadCounter {
 public:
  /// For the tasks of a batch's layer on so many threads.
  void begin(const ForwardBatch& batch, const AttendArgs& args, int threads);

  /// Of queries of one kv head each: `heads` of them for each of the task's rows.
  void add(const AttendTask& task, std::int64_t heads);
  void add(double positions) { counts_.read += positions; }

  /// Where tasks of the thread add positions whose values were not read.
  std::int64_t* left_out(int thread) { return &left_out_[static_cast<std::size_t>(thread)].positions; }
  /// The tasks have run.
  void end();

  [[nodiscard]] const AttendCounts& counts() const { return counts_; }

 private:
  struct alignas(64) LeftOut {  // a line of the cache for each thread
    std::int64_t positions = 0;
  };

  AttendCounts counts_;
  std::vector<LeftOut> left_out_;
};

}  // namespace millrace
