// Scheduler: decides each step's ragged batch. Pure: no clock, thread, memory or tokens in it, only counts.
//
// Every running sequence that has a token to decode gets one row; what is left of the token budget goes to prompts, in
// order of arrival, cut into chunks. A sequence is admitted when the pages of its whole length (prompt and the most it
// may generate) can be reserved in every cache group, so a running sequence never lacks a page.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "core/result.h"
#include "sched/step_plan.h"

namespace millrace {

struct SchedulerLimits {
  std::int32_t max_batch_tokens = 512;  // rows of a step
  std::int32_t max_sequences = 64;      // sequences that run at once, and so the most entries of a step
  std::int64_t total_pages = 0;         // of each cache group
  std::int32_t page_tokens = 16;
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerLimits& limits) : limits_(limits), free_pages_(limits.total_pages) {}

  /// A new sequence of `prompt_tokens` tokens that may grow to `max_tokens`. Error, with the figures: it can never fit.
  Status add(SequenceId id, std::int64_t prompt_tokens, std::int64_t max_tokens);

  /// Decides the next step. Every entry must be answered by commit() before the next call.
  StepPlan schedule();

  /// The step ran: its rows count as computed; each entry that `samples` has one more token to run.
  void commit(const StepPlan& plan);

  /// The sequence is over or cancelled, at any moment between steps: its reservation is free again.
  void finish(SequenceId id);

  [[nodiscard]] bool idle() const { return waiting_.empty() && running_.empty(); }

 private:
  struct Entry {
    SequenceId id = 0;
    std::int64_t tokens = 0;    // known tokens: prompt, then what was sampled
    std::int64_t computed = 0;  // of these, how many have keys and values
    std::int64_t reserved_pages = 0;
  };

  SchedulerLimits limits_;
  std::int64_t free_pages_;
  std::deque<Entry> waiting_;
  std::vector<Entry> running_;  // in order of admission
};

}  // namespace millrace
