#include "runtime/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "core/philox.h"

namespace millrace {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.69314718055994531;

/// Remembers the raw logits of what it changes in `changed`; a token that stands there twice has its raw one first.
void apply_bias_and_penalties(std::span<float> logits, const SamplingParams& params, const TokenCounts& counts,
                              std::vector<std::pair<std::int32_t, float>>& changed) {
  changed.clear();
  const auto logit_of = [&](std::int32_t token) -> float& {
    float& logit = logits[static_cast<std::size_t>(token)];
    changed.emplace_back(token, logit);
    return logit;
  };
  if (needs_counts(params)) {
    for (const TokenCounts::Entry& entry : counts.entries()) {
      float& logit = logit_of(entry.token);
      logit = logit < 0.0f ? logit * params.repetition_penalty : logit / params.repetition_penalty;
      if (entry.generated > 0) {
        logit -= params.presence_penalty + params.frequency_penalty * static_cast<float>(entry.generated);
      }
    }
  }
  for (const auto& [token, bias] : params.logit_bias) logit_of(token) += bias;
}

/// Sets the logits of all other tokens to -inf; the lowest allowed id.
std::int32_t apply_mask(std::span<float> logits, std::span<const std::uint32_t> allowed) {
  if (allowed.empty()) return 0;
  std::int32_t lowest = -1;
  for (std::size_t begin = 0; begin < logits.size(); begin += 32) {
    const std::span<float> group = logits.subspan(begin, std::min<std::size_t>(32, logits.size() - begin));
    const std::uint32_t all = group.size() == 32 ? ~0u : (1u << group.size()) - 1u;
    const std::uint32_t word = begin / 32 < allowed.size() ? allowed[begin / 32] & all : 0;
    if (word == 0) {
      std::fill(group.begin(), group.end(), -kInfinity);
      continue;
    }
    if (lowest < 0) lowest = static_cast<std::int32_t>(begin) + std::countr_zero(word);
    for (std::uint32_t others = ~word & all; others != 0; others &= others - 1) {
      group[static_cast<std::size_t>(std::countr_zero(others))] = -kInfinity;
    }
  }
  MILLRACE_CHECK(lowest >= 0, "no token of {} is allowed", logits.size());
  return lowest;
}

TokenDraw make_draw(const SamplingParams& params, std::int64_t position) {
  TokenDraw draw{.greedy = params.temperature == 0.0f || params.top_k == 1,
                 .top_k = params.top_k,
                 .top_p = params.top_p,
                 .min_p = params.min_p,
                 .floor = kSmallestExponent};
  if (draw.greedy) return draw;
  // The differences that it multiplies are 0 or less: a temperature near 0 may not make 0 · inf of them. So those below
  // 4.24e-39 count as that.
  draw.scale = static_cast<float>(
      std::min(kLog2E / static_cast<double>(params.temperature), double{std::numeric_limits<float>::max()}));
  if (params.min_p > 0.0f && params.top_p >= 1.0f) {  // with top_p, draw_in_top_p() minds it
    draw.floor = std::max(kSmallestExponent, static_cast<float>(portable_log2(static_cast<double>(params.min_p))));
  }
  draw.uniform = philox_uniform(params.seed, params.choice, static_cast<std::uint64_t>(position));
  return draw;
}

/// The row of the k most likely tokens; scratch.kept_tokens has their ids.
RowView keep_top_k(const RowView& row, std::size_t k, SamplerScratch& scratch) {
  const std::span<const RowItem> items = most_likely_items(row, k, scratch.selection);
  scratch.kept_logits.clear();
  scratch.kept_tokens.clear();
  for (const RowItem& item : items) {
    scratch.kept_logits.push_back(item.logit);
    scratch.kept_tokens.push_back(item.place);
  }
  return view_row(*row.kernels, scratch.kept_logits, scratch.kept_maxima);
}

/// What turns the logits of a row into log probabilities.
class LogNormalizer {
 public:
  LogNormalizer(const RowView& row, SelectionScratch& scratch) : largest_(row.largest) {
    if (largest_ == kInfinity) {
      log_sum_ = kLn2 * portable_log2(static_cast<double>(std::count(row.logits.begin(), row.logits.end(), kInfinity)));
    } else if (largest_ > -kInfinity) {
      const WeightScale weights{.largest = largest_, .scale = static_cast<float>(kLog2E)};
      log_sum_ = kLn2 * portable_log2(sum_blocks(row, weights, scratch.block_sums));
    }
  }

  [[nodiscard]] float logprob(float logit) const {
    if (!(logit > -kInfinity)) return -kInfinity;
    const double below = logit == largest_ ? 0.0 : static_cast<double>(logit) - static_cast<double>(largest_);
    return static_cast<float>(below - log_sum_);
  }

 private:
  float largest_;
  double log_sum_ = 0.0;
};

std::vector<std::pair<std::int32_t, float>> top_logprobs(const RowView& row, const LogNormalizer& normalizer,
                                                         std::int32_t top, SelectionScratch& scratch) {
  std::vector<std::pair<std::int32_t, float>> result;
  if (top <= 0) return result;
  const std::span<RowItem> items = most_likely_items(row, static_cast<std::size_t>(top), scratch);
  std::sort(items.begin(), items.end(), more_likely);
  result.reserve(items.size());
  for (const RowItem& item : items) result.emplace_back(item.place, normalizer.logprob(item.logit));
  return result;
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

bool needs_counts(const SamplingParams& params) {
  return params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f || params.frequency_penalty != 0.0f;
}

std::int32_t sample(std::span<float> logits, const SamplingParams& params, const TokenCounts& counts,
                    std::int64_t position, std::span<const std::uint32_t> allowed, SamplerScratch& scratch) {
  MILLRACE_CHECK(!logits.empty(), "no logits");
  apply_bias_and_penalties(logits, params, counts, scratch.changed);
  const std::int32_t lowest = apply_mask(logits, allowed);
  RowView row = view_row(*scratch.kernels, logits, scratch.maxima);
  if (row.largest == -kInfinity) return lowest;
  const TokenDraw draw = make_draw(params, position);
  if (draw.greedy || row.largest == kInfinity) return place_of_largest(row);

  const bool cut = draw.top_k > 0 && static_cast<std::size_t>(draw.top_k) < logits.size();
  if (cut) row = keep_top_k(row, static_cast<std::size_t>(draw.top_k), scratch);
  const WeightScale weights{.largest = row.largest, .scale = draw.scale, .floor = draw.floor};
  const std::int32_t place = draw.top_p < 1.0f
                                 ? draw_in_top_p(row, weights, draw.top_p, draw.min_p, draw.uniform, scratch.selection)
                                 : draw_by_place(row, weights, draw.uniform, scratch.selection);
  return cut ? scratch.kept_tokens[static_cast<std::size_t>(place)] : place;
}

std::int32_t sample(std::span<float> logits, const SamplingParams& params, const TokenCounts& counts,
                    std::int64_t position, std::span<const std::uint32_t> allowed) {
  SamplerScratch scratch;
  return sample(logits, params, counts, position, allowed, scratch);
}

std::optional<TokenDraw> device_draw(const SamplingParams& params, std::int64_t position) {
  if (needs_counts(params) || !params.logit_bias.empty()) return std::nullopt;
  return make_draw(params, position);
}

TokenLogprobs token_logprobs(std::span<const float> logits, std::int32_t token, std::int32_t top,
                             SamplerScratch& scratch) {
  MILLRACE_CHECK(token >= 0 && static_cast<std::size_t>(token) < logits.size(), "token {} of {}", token, logits.size());
  const RowView row = view_row(*scratch.kernels, logits, scratch.maxima);
  const LogNormalizer normalizer(row, scratch.selection);
  return {normalizer.logprob(logits[static_cast<std::size_t>(token)]),
          top_logprobs(row, normalizer, top, scratch.selection)};
}

TokenLogprobs token_logprobs(std::span<const float> logits, std::int32_t token, std::int32_t top) {
  SamplerScratch scratch;
  return token_logprobs(logits, token, top, scratch);
}

SampledToken sample_with_logprobs(std::span<float> logits, const SamplingParams& params, const TokenCounts& counts,
                                  std::int64_t position, std::span<const std::uint32_t> allowed, std::int32_t top,
                                  SamplerScratch& scratch) {
  const RowView row = view_row(*scratch.kernels, logits, scratch.maxima);
  const LogNormalizer normalizer(row, scratch.selection);
  SampledToken sampled;
  sampled.logprobs.top = top_logprobs(row, normalizer, top, scratch.selection);
  sampled.token = sample(logits, params, counts, position, allowed, scratch);
  // The mask spares the token that was drawn, so its raw logit is in the row unless it had a bias or penalty.
  const auto changed = std::find_if(scratch.changed.begin(), scratch.changed.end(),
                                    [&](const auto& entry) { return entry.first == sampled.token; });
  sampled.logprobs.logprob = normalizer.logprob(
      changed != scratch.changed.end() ? changed->second : logits[static_cast<std::size_t>(sampled.token)]);
  return sampled;
}

}  // namespace millrace
