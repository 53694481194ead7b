#include "sched/scheduler.h"

#include <algorithm>

#include "core/check.h"

namespace millrace {

Status Scheduler::add(SequenceId id, std::int64_t prompt_tokens, std::int64_t max_tokens) {
  MILLRACE_CHECK(prompt_tokens > 0 && max_tokens >= prompt_tokens, "{} of {} tokens", prompt_tokens, max_tokens);
  const std::int64_t pages = (max_tokens + limits_.page_tokens - 1) / limits_.page_tokens;
  if (pages > limits_.total_pages) {
    return fail("the request needs KV memory for {} tokens ({} of prompt), but there is room for {} tokens", max_tokens,
                prompt_tokens, limits_.total_pages * limits_.page_tokens);
  }
  waiting_.push_back({id, prompt_tokens, 0, pages});
  return Ok{};
}

StepPlan Scheduler::schedule() {
  while (!waiting_.empty() && waiting_.front().reserved_pages <= free_pages_ &&
         running_.size() < static_cast<std::size_t>(limits_.max_sequences)) {
    free_pages_ -= waiting_.front().reserved_pages;
    running_.push_back(waiting_.front());
    waiting_.pop_front();
  }
  StepPlan plan;
  std::int64_t budget = limits_.max_batch_tokens;
  const auto take = [&](const Entry& entry) {
    const std::int64_t rows = std::min(budget, entry.tokens - entry.computed);
    if (rows <= 0) return;
    budget -= rows;
    plan.entries.push_back(
        {entry.id, entry.computed, static_cast<std::int32_t>(rows), entry.computed + rows == entry.tokens});
  };
  // Decoding rows first: a long prompt must not hold up the streams that run.
  for (const Entry& entry : running_) {
    if (entry.tokens - entry.computed == 1) take(entry);
  }
  for (const Entry& entry : running_) {
    if (entry.tokens - entry.computed > 1) take(entry);
  }
  return plan;
}

void Scheduler::commit(const StepPlan& plan) {
  for (const StepEntry& step : plan.entries) {
    const auto entry =
        std::find_if(running_.begin(), running_.end(), [&](const Entry& candidate) { return candidate.id == step.id; });
    if (entry == running_.end()) continue;  // finished in the meantime
    entry->computed += step.rows;
    if (step.samples) ++entry->tokens;
  }
}

void Scheduler::finish(SequenceId id) {
  const auto matches = [id](const Entry& entry) { return entry.id == id; };
  if (const auto entry = std::find_if(running_.begin(), running_.end(), matches); entry != running_.end()) {
    free_pages_ += entry->reserved_pages;
    running_.erase(entry);
    return;
  }
  std::erase_if(waiting_, matches);
}

}  // namespace millrace
