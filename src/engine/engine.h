// Engine: the loop. Requests go in, token events come out; it owns the sequences, the scheduler and the model runner.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/result.h"
#include "engine/stop_strings.h"
#include "runtime/model_runner.h"
#include "runtime/sampler.h"
#include "runtime/sequence.h"
#include "sched/scheduler.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace millrace {

enum class FinishReason : std::uint8_t { none, stop, length, cancelled };

constexpr std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::none:
      return "none";
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::cancelled:
      return "cancelled";
  }
  return "?";
}

struct Request {
  std::vector<std::int32_t> prompt;  // token ids, at least one
  SamplingParams sampling;
  std::int64_t max_new_tokens = 256;
  std::vector<std::int32_t> stop_ids;  // end-of-sequence tokens; part of the answer's ids, never of its text
  std::vector<std::string> stop;       // stop strings; need a tokenizer
};

/// What a sink is told, in order: one event a token, and a last one with a finish reason (it may carry a token, or only
/// the text that was held back).
struct TokenEvent {
  SequenceId id = 0;
  std::int32_t token = -1;  // -1: none
  std::string text = {};    // newly final text; empty without a tokenizer
  FinishReason finish = FinishReason::none;
};
using Sink = std::function<void(const TokenEvent&)>;

/// Times of one request, in seconds from submit().
struct RequestTimes {
  double ttft = 0.0;  // time to first token
  double tpot = 0.0;  // mean time per output token after the first; 0 with fewer than two tokens
};

/// Not thread-safe: one thread submits and steps.
class Engine {
 public:
  /// `tokenizer` may be null: then events carry ids and no text. It and `runner` must outlive the engine.
  Engine(ModelRunner& runner, const Tokenizer* tokenizer);
  ~Engine();

  /// Error: an empty or too long prompt, an id outside the vocabulary, a bad parameter; with the figures.
  Result<SequenceId> submit(Request request, Sink sink);

  /// Ends a request now; its sink gets a last event with FinishReason::cancelled.
  void cancel(SequenceId id);

  /// Runs one step of whatever is there. False when nothing is.
  bool step();

  /// Times of a request that has just finished; valid inside its sink's last event.
  [[nodiscard]] RequestTimes times(SequenceId id) const;

 private:
  using Clock = std::chrono::steady_clock;

  struct Running {
    Sequence sequence;
    Request request;
    Sink sink;
    TokenCounts counts;
    StopStrings stop_strings{{}};
    std::unique_ptr<Detokenizer> detokenizer;
    Clock::time_point submitted, first_token, last_token;
    std::int64_t generated = 0;
  };

  void take_token(Running& running, std::int32_t token);
  void finish(SequenceId id, TokenEvent event);

  ModelRunner* runner_;
  const Tokenizer* tokenizer_;
  Scheduler scheduler_;
  std::vector<std::int64_t> windows_;
  std::unordered_map<SequenceId, std::unique_ptr<Running>> running_;
  std::vector<std::unique_ptr<Running>> finished_;  // since the last step began
  SequenceId next_id_ = 1;
};

}  // namespace millrace
