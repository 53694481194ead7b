// `millrace tenant`: who may ask the gateways of a cluster: keys, limits, prices, on which nodes.

#include "tenants/tenant.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/bucket_desk.h"
#include "cli/cluster_flags.h"
#include "cli/options.h"
#include "cluster/subjects.h"
#include "tenants/gateway_tenants.h"
#include "tenants/ledger.h"

namespace millrace::cli {

namespace {

struct TenantFlags {
  NatsOptions nats;
  std::string tenant, revoke;
  std::vector<std::string> set;
  bool new_key = false, remove = false, json = false;
};

std::string count_text(const std::optional<std::int64_t>& count) {
  return count ? std::to_string(*count) : "-";
}

std::int64_t unix_now() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

/// A tenant, and what it has spent in this period.
struct Shown {
  Tenant tenant;
  SpendLedger ledger = {};
};

nlohmann::json shown(const Shown& one) {
  const Tenant& tenant = one.tenant;
  nlohmann::json object = nlohmann::json::parse(tenant_json(tenant));
  object["spent"] = {{"account", spend_account(tenant, unix_now())},
                     {"usd", usd(one.ledger.spent)},
                     {"leased_usd", usd(one.ledger.lent())}};
  for (std::size_t i = 0; i < tenant.keys.size(); ++i) {
    object["keys"][i] = {{"id", tenant.keys[i].id()}, {"created", tenant.keys[i].created}};
  }
  return object;
}

void print(const std::map<std::string, Shown>& tenants, const std::optional<std::string>& key,
           const TenantFlags& flags) {
  if (flags.json) {
    nlohmann::json document = nlohmann::json::object();
    for (const auto& [name, one] : tenants) document[name] = shown(one);
    if (key) document[flags.tenant]["new_key"] = *key;
    std::printf("%s\n", document.dump().c_str());
    return;
  }
  fmt::print("{:<20} {:>9} {:>11} {:>8} {:>12} {:>16} {:>12} {:>12} {:<8} {:<16} {}\n", "tenant", "requests/m",
             "tokens/m", "at once", "$ spent", "$ limit", "$/M prompt", "$/M answer", "data", "regions", "keys");
  for (const auto& [name, one] : tenants) {
    const Tenant& tenant = one.tenant;
    const std::string limit = tenant.spend_usd ? fmt::format("{:.6g}/{}", *tenant.spend_usd,
                                                             tenant.spend_per == SpendPeriod::day ? "day" : "month")
                                               : "-";
    std::vector<std::string> keys;
    for (const TenantKey& kept : tenant.keys) keys.push_back(kept.id());
    fmt::print("{:<20} {:>9} {:>11} {:>8} {:>12.6g} {:>16} {:>12.6g} {:>12.6g} {:<8} {:<16} {}{}\n", name,
               count_text(tenant.requests_per_minute), count_text(tenant.tokens_per_minute),
               count_text(tenant.concurrent), usd(one.ledger.spent), limit, tenant.usd_per_million_prompt,
               tenant.usd_per_million_answer, tenant.trusted ? "trusted" : "open",
               tenant.regions.empty() ? "-" : fmt::format("{}", fmt::join(tenant.regions, ",")), fmt::join(keys, ","),
               tenant.disabled ? " (disabled)" : "");
  }
  if (key) fmt::print("new key, which is not shown again: {}\n", *key);
}

/// The record as it is to be.
Result<Tenant> changed(Tenant tenant, const TenantFlags& flags, const std::optional<std::string>& key) {
  for (const std::string& assignment : flags.set) MILLRACE_CHECK_OK(set_tenant(tenant, assignment));
  if (!flags.revoke.empty()) {
    const auto gone = std::erase_if(tenant.keys, [&](const TenantKey& one) { return one.id() == flags.revoke; });
    if (gone == 0) return fail("{} has no key {}", tenant.name, flags.revoke);
  }
  if (key) {
    tenant.keys.push_back({sha256_hex(*key), unix_now()});
  }
  return parse_tenant(tenant_json(tenant));  // what does not go together is found there
}

Result<std::map<std::string, Shown>> with_ledgers(const std::map<std::string, Tenant>& tenants,
                                                  const NatsOptions& nats) {
  std::map<std::string, Shown> all;
  MILLRACE_TRY(const std::unique_ptr<BucketDesk> desk, BucketDesk::open(nats, spend_bucket()));
  for (const auto& [name, tenant] : tenants) {
    Shown& one = all[name] = {tenant};
    MILLRACE_TRY(const auto entry, desk->get(spend_account(tenant, unix_now())));
    if (!entry || !entry->value) continue;
    MILLRACE_TRY(one.ledger, parse_ledger(*entry->value));
  }
  return all;
}

Status run_tenant(const TenantFlags& flags) {
  MILLRACE_CHECK_OK(check_nats_flags(flags.nats));
  const bool changes = flags.new_key || !flags.revoke.empty() || !flags.set.empty();
  if (!flags.tenant.empty() && !is_cluster_name(flags.tenant)) {
    return fail("{}: expected 1 to 32 of a-z, 0-9 and -", flags.tenant);
  }
  MILLRACE_TRY(const std::unique_ptr<BucketDesk> desk, BucketDesk::open(flags.nats, tenants_bucket(true)));
  MILLRACE_TRY(auto entries, desk->read());
  std::map<std::string, Tenant> tenants;
  for (const auto& [name, entry] : entries) {
    if (!entry.value) continue;
    auto tenant = parse_tenant(*entry.value);
    if (!tenant.ok()) return fail("the record of {}: {}", name, tenant.error().message);
    tenants[name] = *std::move(tenant);
  }
  std::optional<std::string> key;
  const auto found = tenants.find(flags.tenant);
  if (flags.remove) {
    if (found == tenants.end()) return fail("there is no tenant {}", flags.tenant);
    MILLRACE_CHECK_OK(desk->remove(flags.tenant));
    tenants.erase(found);
  } else if (changes) {
    const std::uint64_t revision = found == tenants.end() ? 0 : entries[flags.tenant].revision;
    if (flags.new_key) key = new_api_key();
    Tenant before = found == tenants.end() ? Tenant{.name = flags.tenant} : found->second;
    MILLRACE_TRY(const Tenant after, changed(std::move(before), flags, key));
    const Status written = desk->put(flags.tenant, tenant_json(after), revision);
    if (!written.ok() && written.error().kind == ErrorKind::busy) {
      return fail("somebody else has changed {} meanwhile; try again", flags.tenant);
    }
    MILLRACE_CHECK_OK(written);
    tenants[flags.tenant] = after;
  } else if (!flags.tenant.empty() && found == tenants.end()) {
    return fail("there is no tenant {}", flags.tenant);
  }
  if (!flags.tenant.empty()) {
    std::erase_if(tenants, [&](const auto& named) { return named.first != flags.tenant; });
  }
  MILLRACE_TRY(const auto all, with_ledgers(tenants, flags.nats));
  print(all, key, flags);
  return Ok{};
}

}  // namespace

void add_tenant(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<TenantFlags>();
  CLI::App* command = app.add_subcommand("tenant", "Show or set who may ask the gateways of a cluster, and how much");
  CLI::Option* tenant = command->add_option("TENANT", flags->tenant, "Name of a tenant (default: show all)");
  add_nats_flags(*command, flags->nats);
  command
      ->add_option("--set", flags->set,
                   "SETTING=VALUE: requests_per_minute, tokens_per_minute, concurrent, spend_usd, spend_per (day or "
                   "month), usd_per_million_prompt, usd_per_million_answer, data_class (open or trusted), regions, "
                   "labels (lists: a,b), batches, disabled (true or false); VALUE none: no limit")
      ->needs(tenant);
  command->add_flag("--new-key", flags->new_key, "Make an API key, and show it this once")->needs(tenant);
  command->add_option("--revoke", flags->revoke, "ID of a key that counts no longer")->needs(tenant);
  command->add_flag("--remove", flags->remove, "Forget the tenant: its keys count no longer")->needs(tenant);
  command->add_flag("--json", flags->json, "One JSON document on standard output");
  command->callback([flags, &chosen] { chosen = [flags] { return run_tenant(*flags); }; });
}

}  // namespace millrace::cli
