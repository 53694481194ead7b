#include "cluster/speed_profile.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>
#include <vector>

namespace millrace {

namespace {

constexpr std::size_t kRemembered = 48;  // streams
constexpr double kForget = 0.97;         // of a stream's weight, with each that is newer
constexpr double kPrior = 2.0;           // streams that the prior counts for, until there are as many as are remembered
constexpr double kLeastPrior = 0.3;      // of that, however long ago
constexpr double kTypical = 8.0;         // others beside a stream, at which the prior says something of its slope
constexpr std::int64_t kLeastPrompt = 16;       // tokens: of shorter ones the time is not the prompt's
constexpr std::int64_t kLeastAnswer = 4;        // tokens after the first
constexpr double kShort = 16.0, kLong = 256.0;  // tokens of an answer and of a prompt that count in full

double seconds(Duration time) {
  return std::chrono::duration<double>(time).count();
}

/// Ages what was seen; what counts for nothing is forgotten.
void fade(auto& seen, double old) {
  constexpr double kNothing = 1e-3;
  for (auto& one : seen) one.weight *= old;
  while (!seen.empty() && seen.back().weight < kNothing) seen.pop_back();
}

}  // namespace

void SpeedProfile::observe(const NodeWork& work, double old) {
  if (work.first == Instant{0}) return;
  ++observed_;
  if (old < 1.0) {
    fade(tpots_, old);
    fade(prompts_, old);
    // One stream of now says more than it, too, if it is not short.
    prior_counts_ = std::max(kLeastPrior, prior_counts_ * old);
  }
  const double choices = static_cast<double>(work.choices);
  const double later = static_cast<double>(work.tokens) - choices;
  if (later >= static_cast<double>(kLeastAnswer) && work.last > work.first) {
    tpots_.push_front({.others = work.beside + choices - 1.0,
                       .seconds = seconds(work.last - work.first) / (later / choices),
                       .weight = std::min(1.0, later / kShort)});
    if (tpots_.size() > kRemembered) tpots_.pop_back();
    fit_step();
  }
  const std::int64_t prompt = work.prompt_tokens - work.cached_tokens;
  const double own = seconds(work.first - work.placed) - speed_.step;
  if (!work.queued && prompt >= kLeastPrompt && own > 0.0) {
    const auto tokens = static_cast<double>(prompt);
    prompts_.push_front({.seconds_per_token = own / tokens, .weight = std::min(1.0, tokens / kLong)});
    if (prompts_.size() > kRemembered) prompts_.pop_back();
    fit_prefill();
  }
}

double SpeedProfile::prior_weight(std::size_t seen) const {
  return kPrior * prior_counts_ * (1.0 - static_cast<double>(seen) / static_cast<double>(kRemembered + 1));
}

void SpeedProfile::fit_step() {
  std::vector<Tpot> seen(tpots_.begin(), tpots_.end());
  double age = 1.0;
  for (Tpot& tpot : seen) tpot.weight *= std::exchange(age, age * kForget);
  const double left = prior_weight(tpots_.size());
  seen.push_back({.others = 0.0, .seconds = prior_.step, .weight = left / 2.0});
  seen.push_back(
      {.others = kTypical, .seconds = prior_.step + kTypical * prior_.step_per_sequence, .weight = left / 2.0});
  // Times are compared by their ratio: a node twice as slow as was thought is as wrong at any load.
  double step = speed_.step, slope = speed_.step_per_sequence;
  constexpr int kPasses = 20;
  constexpr double kExact = 0.02;  // relative: nearer than this all are the same
  for (int pass = 0; pass < kPasses; ++pass) {
    double w = 0.0, wn = 0.0, wnn = 0.0, wy = 0.0, wny = 0.0;
    for (const Tpot& tpot : seen) {
      const double fitted = step + slope * tpot.others;
      const double off = std::log(tpot.seconds / fitted);
      const double weight = tpot.weight / std::max(std::abs(off), kExact) / (tpot.seconds * fitted);
      w += weight;
      wn += weight * tpot.others;
      wnn += weight * tpot.others * tpot.others;
      wy += weight * tpot.seconds;
      wny += weight * tpot.others * tpot.seconds;
    }
    const double spread = w * wnn - wn * wn;
    slope = spread > 1e-9 * w * wnn ? std::max(0.0, (w * wny - wn * wy) / spread) : slope;
    step = (wy - slope * wn) / w;
    if (step <= 0.0) {  // all of it grows with the load
      constexpr double kLeast = 1e-3;
      step = kLeast * wy / w;
      slope = std::max(0.0, (wny - step * wn) / std::max(wnn, 1e-12));
    }
  }
  speed_.step = step;
  speed_.step_per_sequence = slope;
}

void SpeedProfile::fit_prefill() {
  std::vector<Prompt> seen(prompts_.begin(), prompts_.end());
  double age = 1.0, all = 0.0;
  for (Prompt& prompt : seen) prompt.weight *= std::exchange(age, age * kForget);
  const double left = prior_weight(prompts_.size());
  seen.push_back({.seconds_per_token = 1.0 / prior_.prefill, .weight = left});
  std::ranges::sort(seen, {}, &Prompt::seconds_per_token);
  for (const Prompt& prompt : seen) all += prompt.weight;
  // The weighted median.
  double below = 0.0;
  for (const Prompt& prompt : seen) {
    below += prompt.weight;
    if (below < all / 2.0) continue;
    speed_.prefill = 1.0 / prompt.seconds_per_token;
    return;
  }
}

}  // namespace millrace
