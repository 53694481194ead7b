// Limits of requests and tokens per minute and of requests at once. Pure: times come from outside.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "cluster/transport.h"
#include "tenants/tenant.h"

namespace millrace {

/// A token bucket (Turner 1986): fills with a steady rate up to its size, and what is let through is taken from it. In
/// any time T it lets through at most size + rate * T. It may be below zero, after something that was let through
/// turned out larger, or was let through elsewhere.
class TokenBucket {
 public:
  /// Full. `per_minute`: its rate and its size.
  TokenBucket(double per_minute, Instant now);

  /// The same bucket with another rate: what was missing from the full one still is.
  void set_rate(double per_minute, Instant now);
  /// Of a bucket that has less: nothing is taken.
  bool take(double amount, Instant now);
  /// Whatever there is; a negative amount gives back, up to the full bucket.
  void charge(double amount, Instant now);

  [[nodiscard]] double level(Instant now) const;
  [[nodiscard]] double size() const { return size_; }
  /// How long until take(amount) would succeed; an amount above the size counts as the size.
  [[nodiscard]] Duration wait(double amount, Instant now) const;

 private:
  void fill(Instant now);

  double size_;  // and what comes in a minute
  double level_;
  Instant at_;
};

/// What a tenant has let through in all, as one gateway tells the others.
struct TenantUse {
  std::uint64_t requests = 0;
  std::uint64_t tokens = 0;
  std::int64_t concurrent = 0;  // now
};

/// One tenant at one gateway.
class TenantLimits {
 public:
  explicit TenantLimits(Instant now) : requests_(0, now), tokens_(0, now) {}

  enum class Verdict : std::uint8_t { granted, too_many_requests, too_many_tokens, too_many_at_once, never };

  struct Answer {
    Verdict verdict = Verdict::granted;
    Duration retry_after{0};
    std::int64_t taken_tokens = 0;  // to be handed to end()
  };

  /// A request that may use `prompt` + `answer` tokens. It waits for as many as there can be in the full bucket, at
  /// most; `never`: its prompt alone is more than comes in a minute.
  Answer begin(const Tenant& tenant, std::int64_t prompt, std::int64_t answer, Instant now);
  /// It has ended, having used `used` tokens.
  void end(std::int64_t taken_tokens, std::int64_t used, Instant now);

  /// What another gateway has let through of this tenant, in all. `from_now`: the gateway is heard of for the first
  /// time, and what it has let through before is no news.
  void heard(const Tenant& tenant, const std::string& gateway, const TenantUse& use, Instant now,
             bool from_now = false);
  /// It is gone, or has nothing of this tenant any more.
  void lost(const std::string& gateway) { others_.erase(gateway); }

  [[nodiscard]] const TenantUse& own() const { return own_; }
  /// Where nothing runs and the buckets are full, totals begin anew. True: a new one would be the same.
  bool rest(Instant now);

  struct Left {
    std::int64_t requests = 0, tokens = 0;
    Duration full_requests{0}, full_tokens{0};  // until the buckets are full again
  };
  [[nodiscard]] Left left(Instant now) const;

 private:
  void set(const Tenant& tenant, Instant now);

  TokenBucket requests_, tokens_;
  bool limits_requests_ = false, limits_tokens_ = false;
  TenantUse own_;
  std::map<std::string, TenantUse> others_;
};

}  // namespace millrace
