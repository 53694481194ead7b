// Rows of sequences some of whose pages have moved (SequenceRows::moved): what has moved by the same number of
// positions is read together, with queries that are turned for it, and one task goes on where the other ended.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernel_table.h"
#include "backend/cpu/mass_adder.h"
#include "backend/cpu/read_counter.h"
#include "backend/cpu/thread_scratch.h"
#include "core/thread_pool.h"

namespace millrace {

class MovedAttender {
 public:
  /// All must outlive it.
  MovedAttender(ThreadPool& pool, ThreadScratch& scratch, MassAdder& masses, ReadCounter& reads)
      : pool_(&pool), scratch_(&scratch), masses_(&masses), reads_(&reads) {}

  /// Of the batch the rows of such sequences, with a kernel that has room in the scratch for a row of each kv head.
  void attend(const ForwardBatch& batch, const AttendArgs& args, AttendKernel kernel);

 private:
  struct Row {
    std::int64_t row = 0, place = 0;
    std::size_t sequence = 0;
  };
  struct Thread {
    std::vector<float> turned;          // [group][head_dim]
    std::vector<std::int32_t> entries;  // of the table, chunk by chunk as tasks read them
  };

  void run(const ForwardBatch& batch, AttendKernel kernel, const Row& row, std::int32_t kv_head, int thread);

  ThreadPool* pool_;
  ThreadScratch* scratch_;
  MassAdder* masses_;
  ReadCounter* reads_;
  AttendArgs args_;  // of the layer, but that nothing is left out
  std::vector<Row> rows_;
  std::vector<Thread> threads_;
  std::vector<float> state_;
};

}  // namespace millrace
