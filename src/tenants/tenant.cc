#include "tenants/tenant.h"

#include <openssl/rand.h>
#include <openssl/sha.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>

#include "cluster/subjects.h"
#include "core/check.h"

namespace millrace {

namespace {

using nlohmann::json;

constexpr double kNano = 1e9, kMillion = 1e6;
constexpr std::int64_t kMostCount = std::int64_t{1} << 40;
constexpr double kMostUsd = 1e9, kMostPrice = 1e6;
constexpr std::size_t kMostName = 64, kMostNames = 16;

bool is_word(std::string_view text) {
  return !text.empty() && text.size() <= kMostName && std::ranges::all_of(text, [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '_' ||
           c == '.' || c == '=';
  });
}

bool is_hex(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

Result<TenantKey> read_key(const json& object) {
  constexpr std::size_t kDigits = 64;
  if (!object.is_object() || object.size() != 2)
    return fail("\"keys\": expected objects with \"sha256\" and \"created\"");
  const auto digest = object.find("sha256"), created = object.find("created");
  if (digest == object.end() || !digest->is_string() || digest->get_ref<const std::string&>().size() != kDigits ||
      !is_hex(digest->get_ref<const std::string&>())) {
    return fail("\"sha256\": expected 64 hexadecimal digits");
  }
  if (created == object.end() || !created->is_number_integer()) return fail("\"created\": expected Unix seconds");
  return TenantKey{digest->get<std::string>(), created->get<std::int64_t>()};
}

Result<std::vector<std::string>> read_words(const json& value, const char* key) {
  const auto is_one = [](const json& word) { return word.is_string() && is_word(word.get_ref<const std::string&>()); };
  if (!value.is_array() || value.size() > kMostNames || !std::ranges::all_of(value, is_one)) {
    return fail("\"{}\": expected at most {} words of up to {} of a-z, 0-9 and -_.=", key, kMostNames, kMostName);
  }
  return value.get<std::vector<std::string>>();
}

Result<bool> read_flag(const json& value, const char* key) {
  if (!value.is_boolean()) return fail("\"{}\": expected true or false", key);
  return value.get<bool>();
}

Result<std::int64_t> read_count(const json& value, const char* key) {
  const bool fits =
      value.is_number_integer() && !(value.is_number_unsigned() && value.get<std::uint64_t>() > kMostCount);
  if (!fits || value.get<std::int64_t>() < 1 || value.get<std::int64_t>() > kMostCount) {
    return fail("\"{}\": expected a whole number of 1 to {}", key, kMostCount);
  }
  return value.get<std::int64_t>();
}

Result<double> read_usd(const json& value, const char* key, double most) {
  const double number = value.is_number() ? value.get<double>() : std::nan("");
  if (!(number >= 0.0 && number <= most)) return fail("\"{}\": expected dollars, 0 to {}", key, most);
  return number;
}

/// Sets one member of the record. Error: no such member, or no such value.
Status read_member(Tenant& tenant, const std::string& key, const json& value) {
  if (key == "disabled") {
    MILLRACE_TRY(tenant.disabled, read_flag(value, "disabled"));
  } else if (key == "requests_per_minute") {
    MILLRACE_TRY(tenant.requests_per_minute, read_count(value, "requests_per_minute"));
  } else if (key == "tokens_per_minute") {
    MILLRACE_TRY(tenant.tokens_per_minute, read_count(value, "tokens_per_minute"));
  } else if (key == "concurrent") {
    MILLRACE_TRY(tenant.concurrent, read_count(value, "concurrent"));
  } else if (key == "spend_usd") {
    MILLRACE_TRY(tenant.spend_usd, read_usd(value, "spend_usd", kMostUsd));
  } else if (key == "spend_per") {
    if (value != "day" && value != "month") return fail("\"spend_per\": expected day or month");
    tenant.spend_per = value == "day" ? SpendPeriod::day : SpendPeriod::month;
  } else if (key == "usd_per_million_prompt") {
    MILLRACE_TRY(tenant.usd_per_million_prompt, read_usd(value, "usd_per_million_prompt", kMostPrice));
  } else if (key == "usd_per_million_answer") {
    MILLRACE_TRY(tenant.usd_per_million_answer, read_usd(value, "usd_per_million_answer", kMostPrice));
  } else if (key == "data_class") {
    if (value != "open" && value != "trusted") return fail("\"data_class\": expected open or trusted");
    tenant.trusted = value == "trusted";
  } else if (key == "regions") {
    MILLRACE_TRY(tenant.regions, read_words(value, "regions"));
  } else if (key == "labels") {
    MILLRACE_TRY(tenant.labels, read_words(value, "labels"));
  } else if (key == "batches") {
    MILLRACE_TRY(tenant.batches, read_flag(value, "batches"));
  } else {
    return fail("\"{}\": no such setting of a tenant", key);
  }
  return Ok{};
}

/// The member that a text stands for: by its form, as the settings have no texts that look like numbers.
json value_of(std::string_view key, std::string_view text) {
  if (key == "regions" || key == "labels") {
    json words = json::array();
    while (!text.empty()) {
      const std::size_t end = std::min(text.find(','), text.size());
      words.push_back(text.substr(0, end));
      text.remove_prefix(std::min(end + 1, text.size()));
    }
    return words;
  }
  json value = json::parse(text, nullptr, false);
  return value.is_number() || value.is_boolean() ? value : json(text);
}

std::chrono::year_month_day date_of(std::int64_t unix_seconds) {
  return std::chrono::floor<std::chrono::days>(std::chrono::sys_seconds(std::chrono::seconds(unix_seconds)));
}

}  // namespace

NanoUsd nano_usd(double usd) {
  constexpr auto kMost = static_cast<double>(std::numeric_limits<NanoUsd>::max() / 2);
  constexpr double kExact = 1e-4;  // what products of doubles are off by is no part of a nano-dollar
  return static_cast<NanoUsd>(std::clamp(std::ceil(usd * kNano - kExact), -kMost, kMost));
}

double usd(NanoUsd amount) {
  return static_cast<double>(amount) / kNano;
}

std::string tenant_json(const Tenant& tenant) {
  json keys = json::array();
  for (const TenantKey& key : tenant.keys) keys.push_back({{"sha256", key.sha256}, {"created", key.created}});
  json object{{"tenant", tenant.name},
              {"keys", std::move(keys)},
              {"disabled", tenant.disabled},
              {"spend_per", tenant.spend_per == SpendPeriod::day ? "day" : "month"},
              {"usd_per_million_prompt", tenant.usd_per_million_prompt},
              {"usd_per_million_answer", tenant.usd_per_million_answer},
              {"data_class", tenant.trusted ? "trusted" : "open"},
              {"regions", tenant.regions},
              {"labels", tenant.labels},
              {"batches", tenant.batches}};
  if (tenant.requests_per_minute) object["requests_per_minute"] = *tenant.requests_per_minute;
  if (tenant.tokens_per_minute) object["tokens_per_minute"] = *tenant.tokens_per_minute;
  if (tenant.concurrent) object["concurrent"] = *tenant.concurrent;
  if (tenant.spend_usd) object["spend_usd"] = *tenant.spend_usd;
  return object.dump();
}

Result<Tenant> parse_tenant(std::string_view text) {
  if (text.size() > kMaxTenantRecord) {
    return fail("a tenant's record of {} bytes, at most {} are allowed", text.size(), kMaxTenantRecord);
  }
  const json object = json::parse(text, nullptr, false);
  if (!object.is_object()) return fail("a tenant's record is no JSON object");
  Tenant tenant;
  const auto name = object.find("tenant"), keys = object.find("keys");
  if (name == object.end() || !name->is_string() || !is_cluster_name(name->get_ref<const std::string&>())) {
    return fail("\"tenant\": expected 1 to 32 of a-z, 0-9 and -");
  }
  tenant.name = name->get<std::string>();
  if (keys == object.end() || !keys->is_array() || keys->size() > kMaxTenantKeys) {
    return fail("\"keys\": expected at most {} keys", kMaxTenantKeys);
  }
  for (const json& key : *keys) {
    MILLRACE_TRY(TenantKey read, read_key(key));
    tenant.keys.push_back(std::move(read));
  }
  for (const auto& [key, value] : object.items()) {
    if (key != "tenant" && key != "keys") MILLRACE_CHECK_OK(read_member(tenant, key, value));
  }
  if (tenant.spend_usd && !tenant.has_prices()) {
    return fail("\"spend_usd\" needs \"usd_per_million_prompt\" or \"usd_per_million_answer\"");
  }
  return tenant;
}

Status set_tenant(Tenant& tenant, std::string_view assignment) {
  const std::size_t equals = assignment.find('=');
  if (equals == std::string_view::npos) return fail("{}: expected SETTING=VALUE", assignment);
  const std::string key(assignment.substr(0, equals));
  const std::string_view text = assignment.substr(equals + 1);
  if (text != "none") return read_member(tenant, key, value_of(key, text));
  const Tenant unset;
  if (key == "requests_per_minute") {
    tenant.requests_per_minute.reset();
  } else if (key == "tokens_per_minute") {
    tenant.tokens_per_minute.reset();
  } else if (key == "concurrent") {
    tenant.concurrent.reset();
  } else if (key == "spend_usd") {
    tenant.spend_usd.reset();
  } else if (key == "regions") {
    tenant.regions.clear();
  } else if (key == "labels") {
    tenant.labels.clear();
  } else {
    return fail("{}: no setting that can be none", key);
  }
  return Ok{};
}

std::string new_api_key() {
  constexpr std::string_view kDigits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  constexpr std::size_t kLength = 43;        // 43 * log2(62) = 256.03 bits
  constexpr unsigned kFair = 256 / 62 * 62;  // bytes below it fall on each digit equally often
  std::string key = "mr-";
  while (key.size() < kLength + 3) {
    std::array<unsigned char, 64> bytes{};
    MILLRACE_CHECK(RAND_bytes(bytes.data(), static_cast<int>(bytes.size())) == 1, "no random numbers are to be had");
    for (const unsigned char byte : bytes) {
      if (byte < kFair && key.size() < kLength + 3) key += kDigits[byte % kDigits.size()];
    }
  }
  return key;
}

std::string sha256_hex(std::string_view text) {
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest{};
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
  return fmt::format("{:02x}", fmt::join(digest, ""));
}

NanoUsd price_of(const Tenant& tenant, std::int64_t prompt_tokens, std::int64_t answer_tokens) {
  return nano_usd((static_cast<double>(prompt_tokens) * tenant.usd_per_million_prompt +
                   static_cast<double>(answer_tokens) * tenant.usd_per_million_answer) /
                  kMillion);
}

std::string spend_account(const Tenant& tenant, std::int64_t unix_seconds) {
  const std::chrono::year_month_day date = date_of(unix_seconds);
  std::string account =
      fmt::format("{}.{:04}-{:02}", tenant.name, static_cast<int>(date.year()), static_cast<unsigned>(date.month()));
  if (tenant.spend_per == SpendPeriod::day) account += fmt::format("-{:02}", static_cast<unsigned>(date.day()));
  return account;
}

std::string_view tenant_of_account(std::string_view account) {
  return account.substr(0, account.find('.'));
}

std::int64_t until_next_period(SpendPeriod period, std::int64_t unix_seconds) {
  std::chrono::year_month_day next = date_of(unix_seconds);
  if (period == SpendPeriod::day) {
    next = std::chrono::sys_days(next) + std::chrono::days(1);
  } else {
    next = (next.year() / next.month() + std::chrono::months(1)) / 1;
  }
  return std::chrono::sys_seconds(std::chrono::sys_days(next)).time_since_epoch().count() - unix_seconds;
}

TenantWish wish_of(const Tenant& tenant) {
  return {tenant.trusted, tenant.regions, tenant.labels};
}

Result<std::string> region_of(const Tenant& tenant, const std::string& asked) {
  if (tenant.regions.empty()) return asked;
  if (asked.empty()) return tenant.regions.size() == 1 ? tenant.regions.front() : std::string();
  if (std::ranges::find(tenant.regions, asked) != tenant.regions.end()) return asked;
  return fail("the region {} is not among those of this tenant", asked);
}

}  // namespace millrace
