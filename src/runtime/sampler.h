// From a row of logits to a token. Pure, on the host.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <unordered_map>
#include <vector>

#include "core/result.h"

namespace millrace {

/// Names and meaning as in transformers and the OpenAI API. The defaults change nothing: greedy decoding.
struct SamplingParams {
  float temperature = 0.0f;  // 0: greedy, the most likely token, the lowest id among equals
  std::int32_t top_k = 0;    // keep the k most likely tokens; 0: all
  float top_p = 1.0f;        // keep the smallest set of most likely tokens whose probability reaches top_p
  float min_p = 0.0f;        // drop tokens less likely than min_p times the most likely one
  float repetition_penalty =
      1.0f;                        // on tokens of prompt and answer (Keskar et al. 2019): logit / p, or * p if negative
  float presence_penalty = 0.0f;   // subtracted once for each token that the answer has
  float frequency_penalty = 0.0f;  // subtracted for each time that the answer has the token
  std::map<std::int32_t, float> logit_bias = {};  // added to the logits of these tokens
  std::uint64_t seed = 0;
  std::uint32_t choice = 0;  // index of a choice among several of one request (`n`)
};

/// Error: a value out of its range; the message names it.
Status validate(const SamplingParams& params, std::int64_t vocab);

/// What the penalties need to know of a sequence.
class TokenCounts {
 public:
  void add_prompt(std::int32_t token) { prompt_.emplace(token, 0).first->second += 1; }
  void add_generated(std::int32_t token) { generated_.emplace(token, 0).first->second += 1; }
  [[nodiscard]] const std::unordered_map<std::int32_t, std::int32_t>& prompt() const { return prompt_; }
  [[nodiscard]] const std::unordered_map<std::int32_t, std::int32_t>& generated() const { return generated_; }

 private:
  std::unordered_map<std::int32_t, std::int32_t> prompt_, generated_;
};

/// Draws the token that stands at `position` of its sequence. `logits` [vocab] is scratch: the call changes it. The
/// draw is a pure function of logits, params, counts and position (Philox keyed by seed, choice and position). Order:
/// bias and penalties, temperature, top-k, top-p, min-p, each on what the former left.
std::int32_t sample(std::span<float> logits, const SamplingParams& params, const TokenCounts& counts,
                    std::int64_t position);

}  // namespace millrace
