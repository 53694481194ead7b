// From a row of logits to a token. Pure, on the host.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "backend/token_draw.h"
#include "core/result.h"
#include "runtime/row_selection.h"
#include "runtime/token_counts.h"

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

/// Whether sample() looks at the counts: for all other requests they may stay empty.
bool needs_counts(const SamplingParams& params);

/// Memory that sampling needs beside the row, kept from call to call: once it has grown to the vocabulary, sample()
/// allocates nothing. One a thread.
struct SamplerScratch {
  const RowKernels* kernels = row_kernels().back();  // all of them give the same results
  SelectionScratch selection;
  std::vector<float> maxima, kept_maxima, kept_logits;
  std::vector<std::int32_t> kept_tokens;
  std::vector<std::pair<std::int32_t, float>> changed;  // tokens with bias or penalty, and their raw logits
};

/// Draws the token that stands at `position` of its sequence. `logits` [vocab, at most 2^23] is scratch: the call
/// changes it. The draw is a pure function of logits, params, counts, allowed and position (Philox keyed by seed,
/// choice and position), the same on every instruction set. Order: bias and penalties, `allowed`, temperature, top-k,
/// top-p, min-p, each on what the former left.
///
/// `allowed` is a mask, bit i % 32 of word i / 32 for token i; empty allows all tokens, and tokens beyond its end are
/// not allowed. A token that is not allowed is never drawn. One at least must be.
///
/// A NaN counts as -inf. Where no allowed token has more than that, the lowest allowed id is taken; where some have
/// +inf, the lowest of these. A token less likely than 2^-41 times the most likely one is never drawn.
std::int32_t sample(std::span<float> logits, const SamplingParams& params, const TokenCounts& counts,
                    std::int64_t position, std::span<const std::uint32_t> allowed, SamplerScratch& scratch);
/// … with memory of its own.
std::int32_t sample(std::span<float> logits, const SamplingParams& params, const TokenCounts& counts,
                    std::int64_t position, std::span<const std::uint32_t> allowed = {});

/// What sample() does to a row without a mask, for a device to do; none where there is a bias or a penalty.
std::optional<TokenDraw> device_draw(const SamplingParams& params, std::int64_t position);

/// Natural logarithms of probabilities by the raw logits: before bias, penalties, masks, temperature and cuts (what
/// vLLM calls raw_logprobs). The error is about 1e-6, and 1e-7 of the value.
struct TokenLogprobs {
  float logprob = 0.0f;  // -inf where the logit is NaN or -inf
  /// The most likely tokens, most likely first, the lower id first among equals; none with logits of NaN or -inf.
  std::vector<std::pair<std::int32_t, float>> top = {};
};

/// The log probability of `token` (0 <= token < vocab) and of the `top` (>= 0) most likely tokens. Where some logits
/// are +inf, these tokens share the probability.
TokenLogprobs token_logprobs(std::span<const float> logits, std::int32_t token, std::int32_t top,
                             SamplerScratch& scratch);
TokenLogprobs token_logprobs(std::span<const float> logits, std::int32_t token, std::int32_t top);

struct SampledToken {
  std::int32_t token = 0;
  TokenLogprobs logprobs;
};

/// sample(), with the log probabilities of the token that it drew and of the `top` most likely ones.
SampledToken sample_with_logprobs(std::span<float> logits, const SamplingParams& params, const TokenCounts& counts,
                                  std::int64_t position, std::span<const std::uint32_t> allowed, std::int32_t top,
                                  SamplerScratch& scratch);

}  // namespace millrace
