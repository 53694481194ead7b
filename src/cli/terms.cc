// `millrace terms`: what the operator says of nodes: prices, power, tariffs, whom they may serve, quarantine.

#include "cluster/terms.h"

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
#include "cluster/nats_registry.h"
#include "cluster/subjects.h"
#include "core/mapped_file.h"

namespace millrace::cli {

namespace {

struct TermsFlags {
  NatsOptions nats;
  std::string node;
  std::optional<double> usd_per_hour, busy_watts, idle_watts, pue;
  std::string tariff, region, data_class, quarantine;
  std::vector<std::string> labels;
  bool release = false, remove = false, json = false;

  [[nodiscard]] bool changes_terms() const {
    return usd_per_hour || busy_watts || idle_watts || pue || !tariff.empty() || !region.empty() ||
           !data_class.empty() || !labels.empty();
  }
};

/// "0.30", or "FILE:NAME": that line of a file of tariffs.
Result<Tariff> read_tariff(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string::npos) {
    char* end = nullptr;
    const double price = std::strtod(text.c_str(), &end);
    if (*end != '\0' || text.empty()) return fail("--tariff {}: expected $/kWh, or FILE:NAME", text);
    Tariff tariff{.name = "flat"};
    tariff.usd_per_kwh.fill(price);
    return tariff;
  }
  const std::string path = text.substr(0, colon), name = text.substr(colon + 1);
  MILLRACE_TRY(const std::string csv, read_text_file(path, 1 << 20));
  MILLRACE_TRY(const std::vector<Tariff> tariffs, parse_tariffs(csv, path));
  const auto found = std::ranges::find(tariffs, name, &Tariff::name);
  if (found == tariffs.end()) return fail("{} has no tariff {}", path, name);
  return *found;
}

/// The terms as they stand, changed by the flags.
Result<NodeTerms> changed(NodeTerms terms, const TermsFlags& flags) {
  if (flags.usd_per_hour) terms.usd_per_hour = *flags.usd_per_hour;
  if (flags.busy_watts) terms.busy_watts = *flags.busy_watts;
  if (flags.idle_watts) terms.idle_watts = *flags.idle_watts;
  if (flags.pue) terms.pue = *flags.pue;
  if (!flags.tariff.empty()) {
    MILLRACE_TRY(terms.tariff, read_tariff(flags.tariff));
  }
  if (!flags.region.empty()) terms.region = flags.region;
  if (!flags.labels.empty()) terms.labels = flags.labels;
  if (!flags.data_class.empty()) terms.trusted = flags.data_class == "trusted";
  return parse_terms(terms_json(terms));  // numbers out of range are found there
}

struct Known {
  NodeTerms terms;
  std::string quarantine;
};

void print(const std::map<std::string, Known>& nodes, bool json) {
  if (json) {
    nlohmann::json document = nlohmann::json::object();
    for (const auto& [name, known] : nodes) {
      document[name] = nlohmann::json::parse(terms_json(known.terms));
      if (!known.quarantine.empty()) document[name]["quarantine"] = known.quarantine;
    }
    std::printf("%s\n", document.dump().c_str());
    return;
  }
  const UnixSeconds now = std::chrono::duration_cast<UnixSeconds>(std::chrono::system_clock::now().time_since_epoch());
  fmt::print("{:<20} {:>8} {:>7} {:>7} {:>5} {:>10} {:<20} {:<10} {:<8} {}\n", "node", "$/h", "busy W", "idle W", "PUE",
             "$/kWh now", "tariff", "region", "data", "labels");
  for (const auto& [name, known] : nodes) {
    const NodeTerms& terms = known.terms;
    fmt::print("{:<20} {:>8.4f} {:>7.0f} {:>7.0f} {:>5.2f} {:>10.4f} {:<20} {:<10} {:<8} {}\n", name,
               terms.usd_per_hour, terms.busy_watts, terms.idle_watts, terms.pue, terms.tariff.at(now),
               terms.tariff.name, terms.region.empty() ? "-" : terms.region, terms.trusted ? "trusted" : "open",
               fmt::join(terms.labels, ","));
    if (!known.quarantine.empty()) fmt::print("{:<20} in quarantine: {}\n", "", known.quarantine);
  }
}

Status run_terms(const TermsFlags& flags) {
  MILLRACE_CHECK_OK(check_nats_flags(flags.nats));
  if (!flags.node.empty() && !is_cluster_name(flags.node)) {
    return fail("{}: expected 1 to 32 of a-z, 0-9 and -", flags.node);
  }
  MILLRACE_TRY(const std::unique_ptr<BucketDesk> desk,
               BucketDesk::open(flags.nats, {.name = kOperatorBucket, .makes = true}));
  MILLRACE_TRY(auto entries, desk->read());
  std::map<std::string, Known> nodes;
  constexpr std::string_view kSuffix = ".quarantine";
  for (const auto& [key, entry] : entries) {
    if (!entry.value) continue;
    if (key.ends_with(kSuffix)) {
      nodes[key.substr(0, key.size() - kSuffix.size())].quarantine = *entry.value;
      continue;
    }
    auto terms = parse_terms(*entry.value);
    if (!terms.ok()) return fail("the terms of {}: {}", key, terms.error().message);
    nodes[key].terms = *std::move(terms);
  }
  const auto revision = [&](const std::string& key) {
    const auto found = entries.find(key);
    return found == entries.end() || !found->second.value ? 0 : found->second.revision;
  };
  const std::string held = quarantine_key(flags.node);
  if (flags.remove) {
    if (revision(flags.node) == 0) return fail("there are no terms of {}", flags.node);
    MILLRACE_CHECK_OK(desk->remove(flags.node));
    nodes.erase(flags.node);
  } else if (flags.changes_terms()) {
    MILLRACE_TRY(nodes[flags.node].terms, changed(nodes[flags.node].terms, flags));
    MILLRACE_CHECK_OK(desk->put(flags.node, terms_json(nodes[flags.node].terms), revision(flags.node)));
  }
  if (!flags.quarantine.empty()) {
    MILLRACE_CHECK_OK(desk->put(held, flags.quarantine, revision(held)));
    nodes[flags.node].quarantine = flags.quarantine;
  } else if (flags.release) {
    if (nodes[flags.node].quarantine.empty()) return fail("{} is not in quarantine", flags.node);
    MILLRACE_CHECK_OK(desk->remove(held));
    nodes[flags.node].quarantine.clear();
  }
  if (!flags.node.empty()) {
    std::erase_if(nodes, [&](const auto& named) { return named.first != flags.node; });
  }
  print(nodes, flags.json);
  return Ok{};
}

}  // namespace

void add_terms(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<TermsFlags>();
  CLI::App* command = app.add_subcommand("terms", "Show or set what nodes cost and whom they may serve");
  CLI::Option* node = command->add_option("NODE", flags->node, "Name of a node (default: show all)");
  add_nats_flags(*command, flags->nats);
  const auto number = [&](const char* name, std::optional<double>& value, const char* text) {
    command->add_option(name, value, text)->needs(node);
  };
  number("--usd-per-hour", flags->usd_per_hour, "Of the machine, while it works");
  number("--busy-watts", flags->busy_watts, "Its power while it works");
  number("--idle-watts", flags->idle_watts, "… and while it waits");
  number("--pue", flags->pue, "Power of the site for each watt of the machine");
  command->add_option("--tariff", flags->tariff, "Electricity: $/kWh, or FILE:NAME, a line of a CSV file of tariffs")
      ->needs(node);
  command->add_option("--region", flags->region, "Where it is")->needs(node);
  command->add_option("--label", flags->labels, "What requests may ask for")->needs(node);
  command->add_option("--data-class", flags->data_class, "trusted: it may read prompts of those who ask for that")
      ->check(CLI::IsMember({"open", "trusted"}))
      ->needs(node);
  CLI::Option* quarantine =
      command->add_option("--quarantine", flags->quarantine, "No streams for it any more, and why")->needs(node);
  command->add_flag("--release", flags->release, "End its quarantine")->needs(node)->excludes(quarantine);
  command->add_flag("--remove", flags->remove, "Forget its terms")->needs(node);
  command->add_flag("--json", flags->json, "One JSON document on standard output");
  command->callback([flags, &chosen] { chosen = [flags] { return run_terms(*flags); }; });
}

}  // namespace millrace::cli
