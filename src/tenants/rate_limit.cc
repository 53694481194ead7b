#include "tenants/rate_limit.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace millrace {

namespace {

using Minutes = std::chrono::duration<double, std::ratio<60>>;

/// Rounding may not make a caller come back a moment too early.
constexpr Duration kGrain = std::chrono::milliseconds(1);
/// Requests at once: nobody can say when one ends.
constexpr Duration kTryAgain = std::chrono::seconds(1);

Duration minutes(double count) {
  return std::chrono::duration_cast<Duration>(Minutes(count)) + kGrain;
}

}  // namespace

TokenBucket::TokenBucket(double per_minute, Instant now) : size_(per_minute), level_(per_minute), at_(now) {}

void TokenBucket::fill(Instant now) {
  if (now <= at_) return;
  level_ = level(now);
  at_ = now;
}

double TokenBucket::level(Instant now) const {
  return std::min(size_, level_ + size_ * Minutes(std::max(now - at_, Duration{0})).count());
}

void TokenBucket::set_rate(double per_minute, Instant now) {
  fill(now);
  level_ += per_minute - size_;
  size_ = per_minute;
}

bool TokenBucket::take(double amount, Instant now) {
  fill(now);
  if (level_ < amount) return false;
  level_ -= amount;
  return true;
}

void TokenBucket::charge(double amount, Instant now) {
  fill(now);
  level_ = std::min(size_, level_ - amount);
}

Duration TokenBucket::wait(double amount, Instant now) const {
  const double missing = std::min(amount, size_) - level(now);
  if (missing <= 0.0 || size_ <= 0.0) return Duration{0};
  return minutes(missing / size_);
}

void TenantLimits::set(const Tenant& tenant, Instant now) {
  const auto apply = [&](TokenBucket& bucket, const std::optional<std::int64_t>& limit, bool& limits) {
    limits = limit.has_value();
    const auto rate = static_cast<double>(limit.value_or(0));
    if (rate != bucket.size()) bucket.set_rate(rate, now);
  };
  apply(requests_, tenant.requests_per_minute, limits_requests_);
  apply(tokens_, tenant.tokens_per_minute, limits_tokens_);
}

TenantLimits::Answer TenantLimits::begin(const Tenant& tenant, std::int64_t prompt, std::int64_t answer, Instant now) {
  set(tenant, now);
  if (tenant.concurrent) {
    std::int64_t running = own_.concurrent;
    for (const auto& [gateway, use] : others_) running += use.concurrent;
    if (running >= *tenant.concurrent) return {Verdict::too_many_at_once, kTryAgain};
  }
  const auto size = static_cast<std::int64_t>(tokens_.size());
  if (limits_tokens_ && prompt > size) return {Verdict::never};
  const std::int64_t tokens = limits_tokens_ ? std::min(prompt + answer, size) : prompt + answer;
  if (limits_tokens_ && tokens_.level(now) < static_cast<double>(tokens)) {
    return {Verdict::too_many_tokens, tokens_.wait(static_cast<double>(tokens), now)};
  }
  if (limits_requests_ && !requests_.take(1.0, now)) return {Verdict::too_many_requests, requests_.wait(1.0, now)};
  if (limits_tokens_) tokens_.charge(static_cast<double>(tokens), now);
  ++own_.requests;
  ++own_.concurrent;
  return {.taken_tokens = tokens};
}

void TenantLimits::end(std::int64_t taken_tokens, std::int64_t used, Instant now) {
  --own_.concurrent;
  own_.tokens += static_cast<std::uint64_t>(std::max<std::int64_t>(used, 0));
  if (limits_tokens_) tokens_.charge(static_cast<double>(used - taken_tokens), now);
}

void TenantLimits::heard(const Tenant& tenant, const std::string& gateway, const TenantUse& use, Instant now,
                         bool from_now) {
  set(tenant, now);
  TenantUse& before = others_.try_emplace(gateway, from_now ? use : TenantUse{}).first->second;
  // Totals go up until they begin anew, at nothing.
  if (use.requests < before.requests || use.tokens < before.tokens) before = {};
  if (limits_requests_) requests_.charge(static_cast<double>(use.requests - before.requests), now);
  if (limits_tokens_) tokens_.charge(static_cast<double>(use.tokens - before.tokens), now);
  before = use;
}

bool TenantLimits::rest(Instant now) {
  const Left full = left(now);
  const bool rests = own_.concurrent == 0 && full.full_requests == Duration{0} && full.full_tokens == Duration{0};
  if (rests) own_ = {};
  return rests && others_.empty();
}

TenantLimits::Left TenantLimits::left(Instant now) const {
  const auto whole = [](double level) { return static_cast<std::int64_t>(std::floor(std::max(level, 0.0))); };
  return {whole(requests_.level(now)), whole(tokens_.level(now)), requests_.wait(requests_.size(), now),
          tokens_.wait(tokens_.size(), now)};
}

}  // namespace millrace
