#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/philox.h"

namespace millrace {

namespace {

struct Candidate {
  std::int32_t token;
  float logit;
};

/// Most likely first; the lower id first among equals, so that the order is total.
bool more_likely(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

void apply_bias_and_penalties(std::span<float> logits, const SamplingParams& params, const TokenCounts& counts) {
  if (params.repetition_penalty != 1.0f) {
    const auto penalize = [&](std::int32_t token) {
      float& logit = logits[static_cast<std::size_t>(token)];
      logit = logit < 0.0f ? logit * params.repetition_penalty : logit / params.repetition_penalty;
    };
    for (const auto& [token, count] : counts.prompt()) penalize(token);
    for (const auto& [token, count] : counts.generated()) {
      if (!counts.prompt().contains(token)) penalize(token);
    }
  }
  if (params.presence_penalty != 0.0f || params.frequency_penalty != 0.0f) {
    for (const auto& [token, count] : counts.generated()) {
      logits[static_cast<std::size_t>(token)] -=
          params.presence_penalty + params.frequency_penalty * static_cast<float>(count);
    }
  }
  for (const auto& [token, bias] : params.logit_bias) logits[static_cast<std::size_t>(token)] += bias;
}

std::int32_t most_likely(std::span<const float> logits) {
  std::size_t best = 0;
  for (std::size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[best] || std::isnan(logits[best])) best = i;
  }
  return static_cast<std::int32_t>(best);
}

/// The smallest prefix of `sorted` whose probability, among themselves, reaches top_p. At least one stays.
std::size_t top_p_prefix(const std::vector<Candidate>& sorted, float top_p) {
  double total = 0.0;
  for (const Candidate& c : sorted) total += std::exp(static_cast<double>(c.logit - sorted.front().logit));
  double reached = 0.0;
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    reached += std::exp(static_cast<double>(sorted[i].logit - sorted.front().logit));
    if (reached >= static_cast<double>(top_p) * total) return i + 1;
  }
  return sorted.size();
}

std::int32_t draw(const std::vector<Candidate>& sorted, float uniform) {
  double total = 0.0;
  for (const Candidate& c : sorted) total += std::exp(static_cast<double>(c.logit - sorted.front().logit));
  const double target = static_cast<double>(uniform) * total;
  double reached = 0.0;
  for (const Candidate& c : sorted) {
    reached += std::exp(static_cast<double>(c.logit - sorted.front().logit));
    if (target < reached) return c.token;
  }
  return sorted.back().token;  // rounding of the sum
}

}  // namespace

Status validate(const SamplingParams& params, std::int64_t vocab) {
  const auto outside = [](float value, float low, float high) { return !(value >= low && value <= high); };
  if (outside(params.temperature, 0.0f, 100.0f))
    return fail("temperature is {}, expected 0 to 100", params.temperature);
  if (params.top_k < 0) return fail("top_k is {}, expected 0 (off) or more", params.top_k);
  if (!(params.top_p > 0.0f && params.top_p <= 1.0f))
    return fail("top_p is {}, expected above 0, up to 1", params.top_p);
  if (outside(params.min_p, 0.0f, 1.0f)) return fail("min_p is {}, expected 0 to 1", params.min_p);
  if (!(params.repetition_penalty > 0.0f && params.repetition_penalty <= 100.0f)) {
    return fail("repetition_penalty is {}, expected above 0, up to 100", params.repetition_penalty);
  }
  if (outside(params.presence_penalty, -2.0f, 2.0f)) {
    return fail("presence_penalty is {}, expected -2 to 2", params.presence_penalty);
  }
  if (outside(params.frequency_penalty, -2.0f, 2.0f)) {
    return fail("frequency_penalty is {}, expected -2 to 2", params.frequency_penalty);
  }
  for (const auto& [token, bias] : params.logit_bias) {
    if (token < 0 || token >= vocab) return fail("logit_bias names token {}, the vocabulary has {}", token, vocab);
    if (outside(bias, -100.0f, 100.0f)) return fail("logit_bias of token {} is {}, expected -100 to 100", token, bias);
  }
  return Ok{};
}

std::int32_t sample(std::span<float> logits, const SamplingParams& params, const TokenCounts& counts,
                    std::int64_t position) {
  MILLRACE_CHECK(!logits.empty(), "no logits");
  apply_bias_and_penalties(logits, params, counts);
  if (params.temperature == 0.0f || params.top_k == 1) return most_likely(logits);

  std::vector<Candidate> candidates;
  candidates.reserve(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const float logit = logits[i] / params.temperature;
    if (!std::isnan(logit) && logit != -HUGE_VALF) candidates.push_back({static_cast<std::int32_t>(i), logit});
  }
  if (candidates.empty() || std::isinf(std::max_element(candidates.begin(), candidates.end(), [](auto& a, auto& b) {
                                         return a.logit < b.logit;
                                       })->logit)) {
    return most_likely(logits);
  }
  const std::size_t keep =
      params.top_k > 0 ? std::min(candidates.size(), static_cast<std::size_t>(params.top_k)) : candidates.size();
  std::partial_sort(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(keep), candidates.end(),
                    more_likely);
  candidates.resize(keep);
  if (params.top_p < 1.0f) candidates.resize(top_p_prefix(candidates, params.top_p));
  if (params.min_p > 0.0f) {
    const float floor = candidates.front().logit + std::log(params.min_p);
    std::erase_if(candidates, [floor](const Candidate& c) { return c.logit < floor; });
  }
  return draw(candidates, philox_uniform(params.seed, params.choice, static_cast<std::uint64_t>(position)));
}

}  // namespace millrace
