// From a StepPlan to the ForwardBatch that a device runs.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "backend/forward_batch.h"
#include "recipe/kv_retention.h"
#include "sched/kv_allocator.h"
#include "sched/retention.h"
#include "sched/sequence.h"
#include "sched/step_plan.h"

namespace millrace {

/// Builds the device inputs of a step. `view` tells of the sequence of an entry; its page tables must cover the rows.
/// Logits are wanted of the last row of an entry that samples, and of every row where it says so. The batch points into
/// the page tables: they must not change until the step has run. Where some rows are measured, `masses` is made ready
/// for them, and must stay until then, too.
ForwardBatch make_forward_batch(const StepPlan& plan, std::int32_t page_tokens,
                                const std::function<SequenceView(const StepEntry&)>& view, PageMasses& masses);

/// Sequences for those who run tokens without a scheduler: the caller says in each step which rows run.
class UnscheduledSequences {
 public:
  /// What `limits` says of a prefix cache does not matter: there is none.
  explicit UnscheduledSequences(KvLimits limits, std::optional<KvRetention> keep = {});

  /// Its id: 0, 1, 2, ... Rows from `answer_begin` on count as an answer's; without it those behind the prompt.
  /// The first `pinned_tokens` are kept for ever.
  SequenceId add(std::vector<std::int32_t> tokens, std::int64_t prompt_tokens,
                 std::optional<std::int64_t> answer_begin = {}, std::int64_t pinned_tokens = 0);

  /// Gives the sequences of the entries pages for their rows, and takes back what windows have passed. There must be
  /// enough. The batch must have run when anything is asked for next.
  ForwardBatch batch(const StepPlan& plan);

  /// The next step's rows of the sequence end at or before this position.
  std::int64_t step_end(SequenceId id);

 private:
  struct Sequence {
    std::vector<std::int32_t> tokens;
    std::int64_t prompt_tokens, answer_begin;
    SequenceKv kv;
    std::optional<Retention> retention;
  };

  void settle();  // what the step that has run says of what is kept

  KvLimits limits_;
  std::optional<KvRetention> keep_;
  std::unique_ptr<PageMasses> masses_;      // movable, as
  std::unique_ptr<KvAllocator> allocator_;  // which page tables point into
  std::vector<StepEntry> ran_;              // since settle()
  std::deque<Sequence> sequences_;
};

}  // namespace millrace
