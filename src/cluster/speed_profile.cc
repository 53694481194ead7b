#include "cluster/speed_profile.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace millrace {

namespace {

constexpr double kForget = 0.98;           // of what was learned, with each stream
constexpr double kNoise = 0.01;            // variance of one observation of TPOT, relative to the step
constexpr double kMostOff = 2.0;           // a single observation is taken for at most so many times what was expected
constexpr double kMostWeight = 20.0;       // streams that the prefill rate remembers
constexpr std::int64_t kLeastPrompt = 16;  // tokens: of shorter ones the time is not the prompt's
constexpr std::int64_t kLeastAnswer = 4;   // tokens after the first
constexpr double kRange = 1e-6;            // of a number to its prior, at least

double seconds(Duration time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace

SpeedProfile::SpeedProfile(const NodeSpeed& prior)
    : unit_(prior.step), slope_(prior.step_per_sequence / prior.step), log_prefill_(std::log(prior.prefill)) {}

void SpeedProfile::observe(const NodeWork& work) {
  if (work.first == Instant{0}) return;
  ++observed_;
  const double choices = static_cast<double>(work.choices);
  const double later = static_cast<double>(work.tokens) - choices;
  if (later >= static_cast<double>(kLeastAnswer) && work.last > work.first) {
    const double each = seconds(work.last - work.first) / (later / choices);
    observe_step(static_cast<double>(work.beside) + choices - 1.0, each, std::min(1.0, later / 16.0));
  }
  const std::int64_t prompt = work.prompt_tokens - work.cached_tokens;
  if (!work.queued && prompt >= kLeastPrompt) {
    const NodeSpeed now = speed();
    const double own = seconds(work.first - work.placed) - now.step;
    if (own > 0.0) observe_prefill(own / static_cast<double>(prompt), static_cast<double>(prompt));
  }
}

void SpeedProfile::observe_step(double others, double time, double weight) {
  const double expected = std::max(kRange, step_ + slope_ * others);
  const double seen = std::clamp(time / unit_, expected / kMostOff, expected * kMostOff);
  const double g0 = p00_ + p01_ * others, g1 = p01_ + p11_ * others;
  const double noise = kNoise * expected * expected / weight;
  const double scale = 1.0 / (kForget * noise + g0 + g1 * others);
  const double error = seen - expected;
  step_ = std::max(kRange, step_ + g0 * scale * error);
  slope_ = std::max(0.0, slope_ + g1 * scale * error);
  // Bounded, as with equal loads for long nothing is learned of the other direction, and forgetting would go on.
  constexpr double kMost = 1.0;
  p00_ = std::min(kMost, (p00_ - g0 * scale * g0) / kForget);
  p01_ = std::clamp((p01_ - g0 * scale * g1) / kForget, -kMost, kMost);
  p11_ = std::min(kMost, (p11_ - g1 * scale * g1) / kForget);
}

void SpeedProfile::observe_prefill(double seconds_per_token, double tokens) {
  const double off = std::clamp(-std::log(seconds_per_token) - log_prefill_, -std::log(kMostOff), std::log(kMostOff));
  const double weight = std::min(1.0, tokens / 256.0);
  prefill_weight_ = std::min(kMostWeight, prefill_weight_ + weight);
  log_prefill_ += off * weight / prefill_weight_;
}

NodeSpeed SpeedProfile::speed() const {
  return {.prefill = std::exp(log_prefill_), .step = step_ * unit_, .step_per_sequence = slope_ * unit_};
}

}  // namespace millrace
