// What the engine keeps of a request and of each of its choices, beside the tokens. Internal to this room.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/answer_text.h"
#include "engine/request.h"
#include "runtime/sampler.h"
#include "sched/step_plan.h"
#include "text/grammar.h"

namespace millrace {

struct RequestState;

struct ChoiceState {
  RequestState* request = nullptr;
  SequenceId sequence = 0;
  SamplingParams sampling;  // with this choice's index
  TokenCounts counts;       // only where a penalty needs them
  AnswerText text;
  std::optional<GrammarMatcher> grammar;
  std::chrono::steady_clock::time_point first_token, last_token;
  std::int64_t generated = 0;     // what it had when it went on here included
  std::int64_t later_tokens = 0;  // of those that were drawn here, all but the first
  std::int64_t reported = 0;      // tokens of the prompt that prompt_logprobs events were sent of
  std::int64_t pooled = 0;        // positions that `pool` has
  std::vector<double> pool;       // embed tasks: [hidden], the sum so far or the last row
  FinishReason finish = FinishReason::none;
};

/// What became of a token that was drawn, or that an answer had.
struct TakenToken {
  std::string text;  // newly final
  FinishReason finish = FinishReason::none;
  std::string error;  // one line: the grammar does not have it
};

/// The choice goes on by a token: counts, grammar, text, stop strings, ends.
TakenToken take_token(ChoiceState& choice, std::int32_t token);

/// Error: what `begun` of a request can't be, where answers have room for so many tokens.
Status check_begun(const Request& request, std::int64_t vocab, std::int64_t room);

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
