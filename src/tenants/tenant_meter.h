// TenantMeter: what became of each tenant's requests at this gateway, and what they were charged, for metrics.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "tenants/tenant.h"

namespace millrace {

/// Why a tenant's request was not answered.
enum class TenantRefusal : std::uint8_t {
  account,     // it is disabled, or asks for what it may not have: a region, batches
  requests,    // its requests per minute
  tokens,      // its tokens per minute
  concurrent,  // its requests at once
  too_large,   // its prompt alone has more tokens than come in a minute
  spend,       // it may cost more than is left
  lent,        // what is left is reserved by others of its requests, or lent to other gateways
  store,       // a ledger or a key could not be looked up
  key          // its Idempotency-Key is another request's, still being answered elsewhere, or its answer is gone
};
constexpr std::size_t kTenantRefusals = 9;
std::string_view tenant_refusal_name(TenantRefusal why);

/// Since the gateway began.
struct TenantTally {
  std::int64_t admitted = 0;  // requests that an answer was begun for
  std::int64_t replayed = 0;  // … that were told the answer of an earlier one with the same key
  std::int64_t tokens = 0;    // of both, in prompts and answers; without lines of batches
  NanoUsd charged = 0;        // with lines of batches
  std::array<std::int64_t, kTenantRefusals> refused = {};
};

/// Any thread. A name that is empty is nobody's, and is not counted.
class TenantMeter {
 public:
  /// So many tenants have figures of their own, those that came first; later ones share one line. The series of a
  /// gateway stay below a bound so, however many tenants there are, and none of them ever falls.
  static constexpr std::size_t kMostNamed = 64;
  static constexpr const char* kOthers = "_other";  // no tenant's name

  void admitted(std::string_view tenant);
  void replayed(std::string_view tenant);
  void used(std::string_view tenant, std::int64_t tokens);
  void charged(std::string_view tenant, NanoUsd amount);
  void refused(std::string_view tenant, TenantRefusal why);

  /// Under which name it is counted.
  [[nodiscard]] std::string name_of(const std::string& tenant) const;
  [[nodiscard]] std::map<std::string, TenantTally> tallies() const;

 private:
  template <typename Change>
  void change(std::string_view tenant, Change change);

  mutable std::mutex mutex_;
  std::map<std::string, TenantTally, std::less<>> tallies_;  // guarded by mutex_
};

/// With what is so at the moment.
struct TenantFigures {
  TenantTally tally = {};
  std::int64_t running = 0;           // requests that count in its limits here
  NanoUsd spent = 0;                  // in this period, at all gateways, as its ledger was read last
  NanoUsd free = 0, reserved = 0;     // of what is lent to this gateway
  std::optional<NanoUsd> limit = {};  // of a period
};

}  // namespace millrace
