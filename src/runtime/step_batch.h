// From a StepPlan to the ForwardBatch that a device runs.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "backend/forward_batch.h"
#include "sched/kv_allocator.h"
#include "sched/sequence.h"
#include "sched/step_plan.h"

namespace millrace {

/// Builds the device inputs of a step. `view` tells of the sequence of an entry; its page tables must cover the rows.
/// Logits are wanted of the last row of an entry that samples, and of every row where it says so. The batch points into
/// the page tables: they must not change until the step has run.
ForwardBatch make_forward_batch(const StepPlan& plan, const std::function<SequenceView(const StepEntry&)>& view);

/// Sequences for those who run tokens without a scheduler: the caller says in each step which rows run.
class UnscheduledSequences {
 public:
  /// `pages` in each cache group.
  UnscheduledSequences(std::int32_t pages, std::int32_t page_tokens, std::vector<std::int64_t> windows);

  /// Its id: 0, 1, 2, ... Rows from `answer_begin` on count as an answer's; without it those behind the prompt.
  SequenceId add(std::vector<std::int32_t> tokens, std::int64_t prompt_tokens,
                 std::optional<std::int64_t> answer_begin = {});

  /// Gives the sequences of the entries pages for their rows, and takes back what windows have passed. There must be
  /// enough.
  ForwardBatch batch(const StepPlan& plan);

 private:
  struct Sequence {
    std::vector<std::int32_t> tokens;
    std::int64_t prompt_tokens, answer_begin;
    SequenceKv kv;
  };

  std::unique_ptr<KvAllocator> allocator_;  // movable: page tables point into it
  std::deque<Sequence> sequences_;
};

}  // namespace millrace
