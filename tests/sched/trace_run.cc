#include "sched/trace_run.h"

#include <algorithm>

#include "bench/prompt.h"
#include "core/check.h"

namespace millrace {

TraceRun run_trace(const bench::Trace& trace, const SchedulerLimits& limits, StepTime time,
                   const std::function<void(const Scheduler&, double, double)>& on_step) {
  constexpr bench::TokenRange kTokens{.first = 0, .end = 30000};
  Scheduler scheduler(limits);
  TraceRun run;
  std::vector<bool> admitted(trace.records.size(), false);
  std::vector<std::int32_t> sampled;
  std::vector<SequenceId> ended;
  std::size_t next = 0;
  double now = 0.0, busy = 0.0;
  const auto end_of = [&](SequenceId id) {
    const bench::TraceRecord& record = trace.records[id];
    return std::int64_t{record.input_tokens} + std::max(record.output_tokens, 1);
  };
  while (next < trace.records.size() || !scheduler.idle()) {
    for (; next < trace.records.size() && trace.records[next].arrival_s <= now; ++next) {
      const bench::TraceRecord& record = trace.records[next];
      SequenceSpec spec;
      spec.tokens = bench::prompt_ids(bench::trace_prompt(record, trace.block_tokens, next), 1, kTokens);
      spec.max_tokens = end_of(next);
      const Status added = scheduler.add(next, std::move(spec));
      MILLRACE_CHECK(added.ok(), "request {}: {}", next, added.error().message);
    }
    const StepPlan plan = scheduler.schedule();
    if (plan.empty()) {
      MILLRACE_CHECK(scheduler.idle() && next < trace.records.size(), "nothing runs, and {} wait", scheduler.waiting());
      now = trace.records[next].arrival_s;
      continue;
    }
    sampled.clear();
    ended.clear();
    std::int64_t rows = 0;
    for (const StepEntry& entry : plan.entries) {
      rows += entry.rows;
      if (!admitted[entry.id]) {
        admitted[entry.id] = true;
        run.events.push_back({static_cast<std::int32_t>(entry.id), false});
        run.worst_wait_s = std::max(run.worst_wait_s, now - trace.records[entry.id].arrival_s);
      }
      if (!entry.samples) continue;
      const std::int64_t position = entry.first_position + entry.rows;
      sampled.push_back(static_cast<std::int32_t>(
          kTokens.end + (static_cast<std::int64_t>(entry.id) * 7919 + position * 104729) % 1000003));
      if (position + 1 >= end_of(entry.id)) ended.push_back(entry.id);
    }
    const double seconds = time.base_s + time.per_row_s * static_cast<double>(rows);
    on_step(scheduler, now, seconds);
    now += seconds;
    busy += seconds;
    ++run.steps;
    scheduler.commit(plan, sampled);
    for (const SequenceId id : ended) {
      scheduler.finish(id);
      run.events.push_back({static_cast<std::int32_t>(id), true});
    }
  }
  run.counters = scheduler.counters();
  run.end_s = now;
  run.busy = busy / now;
  return run;
}

}  // namespace millrace
