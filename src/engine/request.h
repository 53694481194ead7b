// What goes into the engine and what comes out: values, no behaviour.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/sampler.h"
#include "text/grammar.h"

namespace millrace {

using RequestId = std::uint64_t;

enum class FinishReason : std::uint8_t { none, stop, length, cancelled, error };

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
    case FinishReason::error:
      return "error";
  }
  return "?";
}

/// What a request asks the model for.
enum class Task : std::uint8_t {
  generate,    // tokens
  embed_mean,  // the mean of the final hidden states of all positions (after the last norm)
  embed_last   // that of the last position
};

/// What an answer has already that goes on here: begun by another engine of the same numeric class, it is completed as
/// that one would have. Nothing of it is told again.
struct BegunAnswer {
  std::vector<std::int32_t> tokens;
  std::int64_t prompt_reported = 0;  // tokens of the prompt that prompt_logprobs events were sent of
  bool ended = false;                // nothing is to be done for it
};

/// What a request asks of whoever serves it, where there is a choice: in a cluster. An engine alone does its best.
struct ServiceWish {
  std::optional<double> ttft_slo = {}, tpot_slo = {};  // seconds; none: what the operator has set
  std::string region = {};                             // where its node must be; empty: anywhere
  std::vector<std::string> regions = {};               // where it may be, of these; empty: anywhere
  std::vector<std::string> labels = {};                // that its node must have
  bool trusted = false;                                // by nodes alone that may read what is confidential
};

struct Request {
  std::vector<std::int32_t> prompt;  // token ids, at least one
  Task task = Task::generate;
  SamplingParams sampling;             // its `choice` is set by the engine
  std::int32_t choices = 1;            // answers to the same prompt (OpenAI's `n`), each with its own random numbers
  std::int64_t max_new_tokens = 256;   // of each choice, with what it has already; cut to what fits
  std::vector<std::int32_t> stop_ids;  // end-of-sequence tokens; part of the answer's ids, never of its text
  std::vector<std::string> stop;       // stop strings; need a tokenizer
  bool special_text = false;           // keep the text of special tokens (for those who parse markers in it)
  std::int32_t logprobs = -1;    // -1: none; k >= 0: of the token itself and of the k most likely ones at its place
  bool prompt_logprobs = false;  // the same for the prompt's tokens, in events before the first generated one
  std::shared_ptr<const Grammar> grammar;  // what the answer must match; null: anything
  std::int64_t pinned_tokens = 0;          // of the prompt, the first: kept for ever, where the recipe keeps some
  std::int32_t priority = 0;  // lower runs earlier (vLLM's meaning); a later request overtakes only so many (sched)
  std::vector<BegunAnswer> begun;  // [choices], or empty: all answers are at their beginning
  std::string cache_salt;          // requests with different salts share no KV memory (tenants)
  ServiceWish wish = {};
};

/// What a sink is told, in order for each choice: one event a token, and a last one with a finish reason (it may carry
/// a token, or only the text that was held back).
struct TokenEvent {
  RequestId request = 0;
  std::int32_t choice = 0;
  std::int32_t token = -1;                     // -1: none
  bool of_prompt = false;                      // a token of the prompt (prompt_logprobs); its text is empty
  std::string text = {};                       // newly final text
  std::optional<TokenLogprobs> logprobs = {};  // of `token`, where asked for; not for the first token of a prompt
  FinishReason finish = FinishReason::none;
  std::string error = {};                          // one line, with FinishReason::error
  std::optional<ErrorKind> error_kind = {};        // … and whose fault it is; none: the server's
  bool of_step = false;                            // a step failed, for no fault of the request: it may be asked again
  std::string stop_string = {};                    // the one that ended the choice; empty where a token did
  std::vector<float> embedding = {};               // [hidden], in the only event of an embed task
  const struct RequestSummary* summary = nullptr;  // with the very last event of the request; valid during the call
};

/// How a cluster has served a request.
struct ServiceReport {
  double usd = 0.0;
  double joules = 0.0;  // modelled: the node's share of its power at work
  std::string node = {}, recipe = {};
  std::int32_t migrations = 0;
  bool identical = true;  // all tokens are those of an undisturbed node; else its end is a valid continuation
};

/// Counts and times of a request; times in seconds from submit().
struct RequestSummary {
  std::int64_t prompt_tokens = 0;
  std::int64_t cached_tokens = 0;     // of these, taken from shared KV memory (by the first choice)
  std::int64_t generated_tokens = 0;  // of all choices
  double queued = 0.0;                // until its first row was scheduled
  double ttft = 0.0;                  // time to first token
  double tpot = 0.0;  // mean time per output token after the first, of all choices; 0 with fewer than two tokens
  double total = 0.0;
  std::optional<ServiceReport> service = {};  // none: an engine alone
};

/// What a sink answers: `pause` stops this choice's sequence from being scheduled until Engine::resume().
enum class Demand : std::uint8_t { more, pause };

/// Called on the thread that steps. It must return soon and may not call the engine's step(); cancel() and resume()
/// are allowed.
using Sink = std::function<Demand(const TokenEvent&)>;

}  // namespace millrace
