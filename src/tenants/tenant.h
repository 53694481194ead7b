// Tenant: who may ask a gateway, for how much, and on which nodes; and the API keys by which it is known
// (docs/tenants.md).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/result.h"

namespace millrace {

/// Money is counted in whole billionths of a dollar, so that sums of many small charges are exact.
using NanoUsd = std::int64_t;
/// Rounded up to a whole one; at most 9.2e9 dollars.
NanoUsd nano_usd(double usd);
double usd(NanoUsd amount);

/// A key as it is kept: nothing of the key itself.
struct TenantKey {
  std::string sha256;        // 64 hexadecimal digits
  std::int64_t created = 0;  // Unix time in seconds

  /// By which an operator names it: the digest's first digits.
  [[nodiscard]] std::string id() const { return sha256.substr(0, 12); }
  friend bool operator==(const TenantKey&, const TenantKey&) = default;
};

enum class SpendPeriod : std::uint8_t { day, month };  // of UTC

/// Numbers that are not set do not limit.
struct Tenant {
  std::string name = {};  // 1 to 32 of a-z, 0-9 and '-'
  std::vector<TenantKey> keys = {};
  bool disabled = false;  // known, and refused
  std::optional<std::int64_t> requests_per_minute = {};
  std::optional<std::int64_t> tokens_per_minute = {};  // of prompts and answers
  std::optional<std::int64_t> concurrent = {};         // requests that run at once
  std::optional<double> spend_usd = {};                // in a period; needs prices
  SpendPeriod spend_per = SpendPeriod::month;
  double usd_per_million_prompt = 0.0, usd_per_million_answer = 0.0;  // what it is charged; not what it costs us
  bool trusted = false;                                               // its prompts may be read by trusted nodes only
  std::vector<std::string> regions = {};  // its nodes must be in one of these; empty: anywhere
  std::vector<std::string> labels = {};   // its nodes must have all of these
  bool batches = true;                    // /v1/files and /v1/batches

  [[nodiscard]] bool has_prices() const { return usd_per_million_prompt > 0.0 || usd_per_million_answer > 0.0; }
  friend bool operator==(const Tenant&, const Tenant&) = default;
};

constexpr std::size_t kMaxTenantKeys = 64;
constexpr const char* kTenantsBucket = "mr_tenants";  // by name
constexpr std::size_t kMaxTenantRecord = 64 << 10;    // bytes

/// As JSON text, and back. Error: what is wrong in it; unknown keys are errors, so that a misspelt one is noticed.
std::string tenant_json(const Tenant& tenant);
Result<Tenant> parse_tenant(std::string_view json);

/// One setting as an operator writes it, "tokens_per_minute=10000"; "none" unsets, lists are separated by commas.
/// Error: no such setting, or no such value.
Status set_tenant(Tenant& tenant, std::string_view assignment);

/// "mr-" and 256 random bits in base 62.
std::string new_api_key();
/// 64 hexadecimal digits.
std::string sha256_hex(std::string_view text);

/// What a request of so many tokens is charged, by the tenant's prices.
NanoUsd price_of(const Tenant& tenant, std::int64_t prompt_tokens, std::int64_t answer_tokens);

/// The ledger's key of a tenant's period at this Unix time: "acme.2026-11-27" or "acme.2026-11".
std::string spend_account(const Tenant& tenant, std::int64_t unix_seconds);
/// Whose account this is.
std::string_view tenant_of_account(std::string_view account);
/// Seconds until the next period begins.
std::int64_t until_next_period(SpendPeriod period, std::int64_t unix_seconds);

/// What the nodes that serve a tenant must be; for the router.
struct TenantWish {
  bool trusted = false;
  std::vector<std::string> regions = {};  // one of these; empty: any
  std::vector<std::string> labels = {};   // all of these
};
TenantWish wish_of(const Tenant& tenant);
/// The region that a request of this tenant runs in, where it asks for `asked` (empty: for none). Empty: any. Error: it
/// may not be there.
Result<std::string> region_of(const Tenant& tenant, const std::string& asked);

}  // namespace millrace
