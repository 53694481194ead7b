// A trace through the scheduler, with a model of time in place of a model of language.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "bench/trace.h"
#include "sched/scheduler.h"

namespace millrace {

/// A step takes base + per_row * rows: what a step costs whatever is in it (weights read, launches), and what each row
/// adds. Attention's share, which grows with the context, is left out.
struct StepTime {
  double base_s = 0.0;
  double per_row_s = 0.0;
};

/// In the order in which they happened: request `admitted` has its first row in a step, or request `ended` is over.
struct TraceEvent {
  std::int32_t request = 0;
  bool ended = false;
};

struct TraceRun {
  std::vector<TraceEvent> events;
  Scheduler::Counters counters;
  std::int64_t steps = 0;
  double end_s = 0.0;
  double worst_wait_s = 0.0;  // from arrival to the first row
  double busy = 0.0;          // share of the time in which a step ran
};

/// Plays the trace: a request arrives at its time, its prompt is made from its hash ids (or its number), its answer has
/// output_tokens tokens that nothing else has. `on_step(now, seconds)`: a step of so many seconds begins.
TraceRun run_trace(const bench::Trace& trace, const SchedulerLimits& limits, StepTime time,
                   const std::function<void(const Scheduler&, double, double)>& on_step);

}  // namespace millrace
