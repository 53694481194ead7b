// What the engine keeps of a request and of each of its choices, beside the tokens. Internal to this room.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "engine/request.h"
#include "engine/stop_strings.h"
#include "runtime/sampler.h"
#include "sched/step_plan.h"
#include "text/detokenizer.h"
#include "text/grammar.h"

namespace millrace {

struct RequestState;

struct ChoiceState {
  RequestState* request = nullptr;
  SequenceId sequence = 0;
  SamplingParams sampling;  // with this choice's index
  TokenCounts counts;       // only where a penalty needs them
  StopStrings stop_strings{{}};
  std::unique_ptr<Detokenizer> detokenizer;
  std::optional<GrammarMatcher> grammar;
  std::chrono::steady_clock::time_point first_token, last_token;
  std::int64_t generated = 0;
  std::int64_t reported = 0;  // tokens of the prompt that prompt_logprobs events were sent of
  std::int64_t pooled = 0;    // positions that `pool` has
  std::vector<double> pool;   // embed tasks: [hidden], the sum so far or the last row
  FinishReason finish = FinishReason::none;
};

struct RequestState {
  RequestId id = 0;
  Request request;
  Sink sink;
  std::chrono::steady_clock::time_point submitted, started;
  bool has_started = false;
  std::int64_t cached_tokens = 0;
  std::size_t unfinished = 0;
  std::vector<ChoiceState> choices;  // never resized after the start: the engine points to them
};

}  // namespace millrace
