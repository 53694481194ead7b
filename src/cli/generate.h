// What `run` and its conversation share: sampling flags, one generation to its end, the closing line.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "engine/engine_core.h"
#include "runtime/load_model.h"

namespace millrace::cli {

/// Flags that are absent fall back to the checkpoint's generation_config.json, then to greedy decoding.
struct GenerationFlags {
  std::int64_t max_new_tokens = 256;
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<std::int32_t> top_k;
  float presence_penalty = 0.0f, frequency_penalty = 0.0f;
  std::vector<std::string> logit_bias;  // "ID:BIAS"
  std::optional<std::uint64_t> seed;
  std::vector<std::string> stop;
  bool ignore_eos = false;
};

void add_generation_flags(CLI::App& command, GenerationFlags& flags);

/// A request with everything but its prompt.
Result<Request> make_request(const GenerationFlags& flags, const LoadedModel& model);

struct Generated {
  std::vector<std::int32_t> token_ids;
  std::string text;
  FinishReason finish = FinishReason::none;
  RequestSummary summary;
};

/// Runs one request to its end; an interrupt cancels it. `on_event` sees every event. Error: the request was refused,
/// or ended with one.
Result<Generated> generate(EngineCore& engine, Request request, const std::function<void(const TokenEvent&)>& on_event);

/// Writes to standard output at once: a stream of tokens must not wait for a line to fill.
void print_now(const std::string& text);

/// Prompt and answer lengths, TTFT, TPOT and tokens/s, on standard error.
void print_closing_line(std::size_t prompt_tokens, const Generated& answer);

}  // namespace millrace::cli
