#include "cluster/node_watch.h"

#include <algorithm>
#include <cmath>

namespace millrace {

namespace {

double uncached(const NodeWork& work) {
  return static_cast<double>(work.prompt_tokens - work.expected_cached);
}

}  // namespace

void NodeWatch::beat(const NodeLoad& load, double now) {
  waiting_ = load.waiting;
  others_ = static_cast<double>(std::max<std::int64_t>(0, load.running + load.waiting - own_));
  others_tokens_ = std::max(0.0, static_cast<double>(load.waiting_tokens) - own_tokens(now));
  kv_free_ = static_cast<double>(load.kv_free);
}

double NodeWatch::own_tokens(double now) const {
  if (prompts_.empty()) return 0.0;
  const double computed = (now - since_) * speed().prefill;
  return prompts_tokens_ - std::min(computed, prompts_.front());
}

NodeLoad NodeWatch::load(double now) const {
  return {.running = own_ + static_cast<std::int64_t>(others_),
          .waiting_tokens = static_cast<std::int64_t>(own_tokens(now) + others_tokens_),
          .kv_free = static_cast<std::int64_t>(kv_free_)};
}

double NodeWatch::beside(const NodeWork& work) const {
  return static_cast<double>(own_ - work.choices) + others_;
}

void NodeWatch::drop_prompt(const NodeWork& work, double now) {
  const auto prompt = std::ranges::find(prompts_, uncached(work));
  if (prompt == prompts_.end()) return;
  if (prompt == prompts_.begin()) since_ = now;
  prompts_tokens_ -= *prompt;  // whole numbers: nothing is rounded
  prompts_.erase(prompt);
}

void NodeWatch::placed(NodeWork& work, double now) {
  work.queued = work.queued || waiting_ > 0 || !prompts_.empty();
  if (prompts_.empty()) since_ = now;
  own_ += work.choices;
  prompts_.push_back(uncached(work));
  prompts_tokens_ += uncached(work);
  kv_free_ -= uncached(work);
}

void NodeWatch::began(NodeWork& work, double now) {
  drop_prompt(work, now);
  work.beside = beside(work);
}

void NodeWatch::left(NodeWork& work, double now) {
  if (work.first == Instant{0}) {
    drop_prompt(work, now);
  } else {
    work.beside = (work.beside + beside(work)) / 2.0;
  }
  own_ -= work.choices;
  profile_.observe(work);
}

void tell_kept(Router& router, const NodeWork& work, double now) {
  if (!work.within_slo) return;
  const auto seconds = [](Duration time) { return std::chrono::duration<double>(time).count(); };
  const bool began = work.first != Instant{0};
  const double ttft = (began ? seconds(work.first) : now) - seconds(work.placed);
  // One that left before its first token tells something where that was late.
  if (std::isfinite(work.ttft_slo) && (began || ttft > work.ttft_slo)) router.ttft_came(ttft <= work.ttft_slo);
  const std::int64_t later = work.tokens - work.choices;
  if (!std::isfinite(work.tpot_slo) || !began || later <= 0) return;
  const double each = seconds(work.last - work.first) * static_cast<double>(work.choices) / static_cast<double>(later);
  router.tpot_came(each <= work.tpot_slo);
}

double busy_seconds(const NodeFacts& node, const NodeWork& work) {
  const double prompt = static_cast<double>(work.prompt_tokens - work.cached_tokens) / node.speed.prefill;
  const double each = node.speed.step / static_cast<double>(node.places) + node.speed.step_per_sequence;
  return prompt + static_cast<double>(work.tokens) * each;
}

void ExpectedAnswer::ended(std::int64_t tokens) {
  constexpr std::int64_t kRemembered = 200;  // answers
  seen_ = std::min(seen_ + 1, kRemembered);
  tokens_ += (static_cast<double>(tokens) - tokens_) / static_cast<double>(seen_);
}

}  // namespace millrace
