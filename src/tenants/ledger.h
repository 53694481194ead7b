// SpendLedger: what a tenant has spent in a period, and what of the rest is lent to gateways. A value; whoever changes
// it does so by compare-and-set (budget.h).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "tenants/tenant.h"

namespace millrace {

constexpr const char* kSpendBucket = "mr_spend";    // by spend_account()
constexpr std::size_t kMaxLedgerRecord = 64 << 10;  // bytes

/// What is lent to a gateway, and the number of the last change that it made.
struct SpendLease {
  std::string holder;  // the gateway, and its life
  NanoUsd left = 0;    // that it may still spend
  std::uint64_t turn = 0;
  bool closed = false;  // taken back from a holder that was not heard of

  friend bool operator==(const SpendLease&, const SpendLease&) = default;
};

/// A keyed request that was charged, and whose answer may not be kept yet: it is not charged again.
struct PaidKey {
  std::string key;
  std::int64_t at = 0;  // Unix time in seconds

  friend bool operator==(const PaidKey&, const PaidKey&) = default;
};

struct SpendLedger {
  NanoUsd spent = 0;
  std::vector<SpendLease> leases = {};
  std::vector<PaidKey> paid = {};

  [[nodiscard]] const SpendLease* lease(std::string_view holder) const;
  /// The holder's lease; a new one where it has none. It stays valid until the next call.
  SpendLease& lease_of(std::string_view holder);
  /// All that is lent.
  [[nodiscard]] NanoUsd lent() const;
  [[nodiscard]] bool has_paid(std::string_view key) const;

  /// Adds a charge, unless it is of a key that has been charged. `from`: the lease that it is taken from, as far as
  /// that reaches.
  void charge(SpendLease& from, NanoUsd amount, const std::string& key, std::int64_t unix_now);
  void forget(std::string_view key);
  /// Drops what nobody needs any more: keys older than a day, closed leases beyond the last ones.
  void tidy(std::int64_t unix_now);

  friend bool operator==(const SpendLedger&, const SpendLedger&) = default;
};

/// As JSON text, and back. Error: what is wrong in it.
std::string ledger_json(const SpendLedger& ledger);
Result<SpendLedger> parse_ledger(std::string_view json);

}  // namespace millrace
