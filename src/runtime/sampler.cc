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

double weight(const Candidate& candidate, float largest) {
  return std::exp(static_cast<double>(candidate.logit - largest));
}

double total_weight(const std::vector<Candidate>& candidates, float largest) {
  double total = 0.0;
  for (const Candidate& candidate : candidates) total += weight(candidate, largest);
  return total;
}

/// Keeps the fewest most likely candidates whose probability, among themselves, reaches top_p; at least one. A heap
/// gives them one by one: a vocabulary has a hundred thousand tokens, and mostly a few dozen are kept.
void keep_top_p(std::vector<Candidate>& candidates, float top_p, float largest) {
  const double wanted = static_cast<double>(top_p) * total_weight(candidates, largest);
  const auto less_likely = [](const Candidate& a, const Candidate& b) { return more_likely(b, a); };
  std::make_heap(candidates.begin(), candidates.end(), less_likely);
  auto kept = candidates.end();
  double reached = 0.0;
  while (kept != candidates.begin() && (kept == candidates.end() || reached < wanted)) {
    std::pop_heap(candidates.begin(), kept, less_likely);
    --kept;
    reached += weight(*kept, largest);
  }
  candidates.erase(candidates.begin(), kept);
}

std::int32_t draw(const std::vector<Candidate>& candidates, float largest, float uniform) {
  const double target = static_cast<double>(uniform) * total_weight(candidates, largest);
  double reached = 0.0;
  for (const Candidate& candidate : candidates) {
    reached += weight(candidate, largest);
    if (target < reached) return candidate.token;
  }
  return candidates.back().token;  // rounding of the sum
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
  float largest = -HUGE_VALF;
  for (const Candidate& candidate : candidates) largest = std::max(largest, candidate.logit);
  if (std::isinf(largest)) return most_likely(logits);
  if (params.top_k > 0 && static_cast<std::size_t>(params.top_k) < candidates.size()) {
    const auto end = candidates.begin() + params.top_k;
    std::nth_element(candidates.begin(), end, candidates.end(), more_likely);
    candidates.erase(end, candidates.end());
    std::sort(candidates.begin(), candidates.end(), more_likely);  // what nth_element leaves is in no certain order
  }
  if (params.top_p < 1.0f) keep_top_p(candidates, params.top_p, largest);
  if (params.min_p > 0.0f) {
    const float floor = largest + std::log(params.min_p);
    std::erase_if(candidates, [floor](const Candidate& c) { return c.logit < floor; });
  }
  return draw(candidates, largest, philox_uniform(params.seed, params.choice, static_cast<std::uint64_t>(position)));
}

}  // namespace millrace
