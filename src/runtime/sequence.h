// Sequence: the token state of one generation, and the steps from a StepPlan to a ForwardBatch.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "backend/forward_batch.h"
#include "kv/page_pool.h"
#include "sched/step_plan.h"

namespace millrace {

struct Sequence {
  SequenceId id = 0;
  std::vector<std::int32_t> tokens;  // prompt, then what was generated
  std::int64_t prompt_tokens = 0;
  std::vector<PageTable> tables;  // one a cache group
};

/// Builds the device inputs of a step. Grows the page tables of the sequences that run (the scheduler has reserved the
/// pages) and gives back pages that windows have passed. `windows` has the window of each cache group, 0 for none;
/// `find` returns the sequence of an id, which must exist. Logits are wanted of the entries that sample, or of all
/// rows. The batch points into the sequences' page tables: they must not change until the step has run.
ForwardBatch make_forward_batch(const StepPlan& plan, const std::vector<std::int64_t>& windows, bool all_logits,
                                const std::function<Sequence&(SequenceId)>& find);

}  // namespace millrace
