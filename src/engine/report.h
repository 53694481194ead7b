// What the engine tells of itself, for metrics and benchmarks. Times in seconds.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "engine/request.h"
#include "sched/scheduler.h"

namespace millrace {

/// One step. `stream` is the time in sinks, detokenising included.
struct StepReport {
  double schedule = 0.0, prepare = 0.0, forward = 0.0, sample = 0.0, stream = 0.0;
  std::int64_t rows = 0, prefill_rows = 0, decode_rows = 0;
  std::int64_t sequences = 0;  // in the batch
  std::int64_t running = 0, waiting = 0;
  Scheduler::KvUse kv;
  // Of this step.
  std::int64_t prompt_tokens = 0;  // rows computed of prompts
  std::int64_t generated_tokens = 0;
  std::int64_t preemptions = 0, swaps = 0;
  std::int64_t dropped_pages = 0, freed_pages = 0;   // that sequences did not keep; of these nobody else had
  std::int64_t prefix_queries = 0, prefix_hits = 0;  // tokens of newly admitted prompts; of these, found
  std::span<const double> inter_token;  // times between a choice's tokens that ended now; valid in the call
  std::string_view failure;  // why the step failed, and all that were in it; empty: it did not; valid in the call

  [[nodiscard]] double total() const { return schedule + prepare + forward + sample + stream; }
};

/// A request that has ended. `finish`: of its first choice.
struct RequestReport {
  RequestSummary summary;
  FinishReason finish = FinishReason::none;
};

struct EngineSnapshot {
  std::int64_t running = 0, waiting = 0;
  std::int64_t prompt_tokens_left = 0;  // of prompts, not computed yet
  Scheduler::KvUse kv;
  bool draining = false;
};

}  // namespace millrace
