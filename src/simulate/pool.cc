#include "simulate/pool.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "cluster/sim_network.h"

namespace millrace {

namespace {

using nlohmann::json;

constexpr double kSecondsPerHour = 3600.0;

struct Site {
  std::string name;
  double pue = 1.0, mtbf_h = 0.0, mttr_h = 0.0;
};

struct Type {
  SimNode node;
  double share = 1.0;
  const Site* site = nullptr;      // null: by lot
  const Tariff* tariff = nullptr;  // the same
};

Result<double> number_at(const json& object, const char* key, double least, double most) {
  const auto found = object.find(key);
  if (found == object.end()) return fail("\"{}\" is missing", key);
  const double number = found->is_number() ? found->get<double>() : std::nan("");
  if (!(number >= least && number <= most)) return fail("\"{}\": expected a number of {} to {}", key, least, most);
  return number;
}

Result<std::string> text_at(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string() || found->get_ref<const std::string&>().empty()) {
    return fail("\"{}\": expected a text", key);
  }
  return found->get<std::string>();
}

Result<std::vector<Site>> read_sites(const json& pool) {
  constexpr double kMostPue = 10.0, kMostHours = 1e6;
  const auto pues = pool.find("pue"), classes = pool.find("availability");
  if (pues == pool.end() || !pues->is_object() || pues->empty()) {
    return fail("\"pue\": expected an object of sites, such as {{\"home\": 1.0}}");
  }
  if (classes == pool.end() || !classes->is_object()) return fail("\"availability\": expected an object of sites");
  std::vector<Site> sites;
  for (const auto& [name, pue] : pues->items()) {
    Site site{.name = name};
    MILLRACE_TRY(site.pue, number_at(*pues, name.c_str(), 1.0, kMostPue));
    const auto availability = classes->find(name);
    if (availability == classes->end() || !availability->is_object()) {
      return fail("\"availability\": the site {} of \"pue\" is not there", name);
    }
    MILLRACE_TRY(site.mtbf_h, number_at(*availability, "mtbf_h", 0.01, kMostHours));
    MILLRACE_TRY(site.mttr_h, number_at(*availability, "mttr_h", 0.0, kMostHours));
    sites.push_back(std::move(site));
  }
  return sites;
}

Status read_relative(const json& object, const PoolBase& base, SimNode& node) {
  constexpr double kMostRelative = 1000.0, kMostGb = 1e5, kBytesPerGb = 1e9;
  MILLRACE_TRY(const double prefill, number_at(object, "prefill_rel", 1e-4, kMostRelative));
  MILLRACE_TRY(const double decode, number_at(object, "decode_rel", 1e-4, kMostRelative));
  MILLRACE_TRY(const double memory, number_at(object, "vram_gb", 0.1, kMostGb));
  node.speed = {.prefill = base.speed.prefill * prefill,
                .step = base.speed.step / decode,
                .step_per_sequence = base.speed.step_per_sequence / decode};
  node.chunk = std::max(1.0, std::min(base.chunk, std::floor(node.speed.prefill * base.chunk_s)));
  const double kv_gb = memory * base.memory_used - base.weights_gb;
  node.kv_tokens = static_cast<std::int64_t>(std::floor(kv_gb * kBytesPerGb / base.kv_bytes_per_token));
  if (node.kv_tokens < base.tokens_per_place) {
    return fail("of {} GB {} are for use, {} of them for weights: too little is left for sequences", memory,
                memory * base.memory_used, base.weights_gb);
  }
  node.places = std::min(base.max_places, node.kv_tokens / base.tokens_per_place);
  node.context = std::min(base.max_context, node.kv_tokens);
  return Ok{};
}

Status read_measured(const json& object, SimNode& node) {
  constexpr double kMostRate = 1e8, kMostStep = 1e3, kMostPlaces = 1 << 16, kMostTokens = 1ll << 40;
  constexpr double kUsualChunk = 512.0, kMostChunk = 1 << 20;
  MILLRACE_TRY(node.speed.prefill, number_at(object, "prefill_tokens_s", 1e-3, kMostRate));
  MILLRACE_TRY(node.speed.step, number_at(object, "step_s", 1e-7, kMostStep));
  MILLRACE_TRY(node.speed.step_per_sequence, number_at(object, "step_per_sequence_s", 0.0, kMostStep));
  MILLRACE_TRY(const double places, number_at(object, "places", 1.0, kMostPlaces));
  MILLRACE_TRY(const double tokens, number_at(object, "kv_tokens", 1.0, kMostTokens));
  node.chunk = kUsualChunk;
  if (object.contains("chunk_tokens")) {
    MILLRACE_TRY(node.chunk, number_at(object, "chunk_tokens", 1.0, kMostChunk));
  }
  node.places = static_cast<std::int64_t>(places);
  node.kv_tokens = node.context = static_cast<std::int64_t>(tokens);
  return Ok{};
}

Result<Type> read_type(const json& object, const std::vector<Site>& sites, const std::vector<Tariff>& tariffs,
                       const PoolBase& base) {
  constexpr double kMostUsd = 1e6, kMostWatts = 1e7, kMostShare = 1e6;
  constexpr std::string_view kKnown[] = {"name",         "vram_gb",
                                         "usd_per_hour", "idle_w",
                                         "busy_w",       "prefill_rel",
                                         "decode_rel",   "fp8",
                                         "share",        "site",
                                         "tariff",       "note",
                                         "places",       "prefill_tokens_s",
                                         "step_s",       "step_per_sequence_s",
                                         "kv_tokens",    "chunk_tokens"};
  for (const auto& [key, value] : object.items()) {
    if (std::ranges::find(kKnown, key) == std::end(kKnown)) return fail("\"{}\": no such key", key);
  }
  Type type;
  MILLRACE_TRY(type.node.type, text_at(object, "name"));
  MILLRACE_TRY(type.node.terms.usd_per_hour, number_at(object, "usd_per_hour", 0.0, kMostUsd));
  MILLRACE_TRY(type.node.terms.busy_watts, number_at(object, "busy_w", 0.0, kMostWatts));
  MILLRACE_TRY(type.node.terms.idle_watts, number_at(object, "idle_w", 0.0, kMostWatts));
  if (object.contains("share")) {
    MILLRACE_TRY(type.share, number_at(object, "share", 1e-6, kMostShare));
  }
  if (object.contains("site")) {
    MILLRACE_TRY(const std::string name, text_at(object, "site"));
    const auto site = std::ranges::find(sites, name, &Site::name);
    if (site == sites.end()) return fail("\"site\": {} is not in \"pue\"", name);
    type.site = &*site;
  }
  if (object.contains("tariff")) {
    MILLRACE_TRY(const std::string name, text_at(object, "tariff"));
    const auto tariff = std::ranges::find(tariffs, name, &Tariff::name);
    if (tariff == tariffs.end()) return fail("\"tariff\": {} is not among the tariffs", name);
    type.tariff = &*tariff;
  }
  const bool measured = object.contains("prefill_tokens_s");
  if (measured && object.contains("prefill_rel")) return fail("\"prefill_rel\" and \"prefill_tokens_s\": one of both");
  MILLRACE_CHECK_OK(measured ? read_measured(object, type.node) : read_relative(object, base, type.node));
  return type;
}

}  // namespace

Result<std::vector<SimNode>> make_pool(std::string_view text, const std::string& name,
                                       const std::vector<Tariff>& tariffs, std::int64_t count, std::uint64_t seed,
                                       const PoolBase& base) {
  if (tariffs.empty()) return fail("{}: a pool without tariffs", name);
  const json pool = json::parse(text, nullptr, false);
  if (!pool.is_object()) return fail("{}: not a JSON object", name);
  auto sites = read_sites(pool);
  if (!sites.ok()) return fail("{}: {}", name, sites.error().message);
  const auto list = pool.find("node_types");
  if (list == pool.end() || !list->is_array() || list->empty()) {
    return fail("{}: \"node_types\": expected a list of types", name);
  }
  std::vector<Type> types;
  for (const json& object : *list) {
    if (!object.is_object()) return fail("{}: node type {} is no object", name, types.size());
    auto type = read_type(object, *sites, tariffs, base);
    if (!type.ok()) {
      const std::string called = text_at(object, "name").ok() ? object["name"].get<std::string>() : "";
      return fail("{}: node type {} {}: {}", name, types.size(), called, type.error().message);
    }
    types.push_back(std::move(*type));
  }
  // Each node is of the type that is furthest behind its share, so that any number of them has the shares.
  SimDice dice(seed);
  std::vector<double> owed(types.size(), 0.0);
  double all = 0.0;
  for (const Type& type : types) all += type.share;
  std::vector<SimNode> nodes;
  nodes.reserve(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    for (std::size_t t = 0; t < types.size(); ++t) owed[t] += types[t].share / all;
    const auto most = static_cast<std::size_t>(std::ranges::max_element(owed) - owed.begin());
    owed[most] -= 1.0;
    const Type& type = types[most];
    const Site& drawn_site = (*sites)[dice.below(sites->size())];
    const Tariff& drawn_tariff = tariffs[dice.below(tariffs.size())];
    const Site& site = type.site != nullptr ? *type.site : drawn_site;
    SimNode node = type.node;
    node.site = site.name;
    node.terms.pue = site.pue;
    node.terms.tariff = type.tariff != nullptr ? *type.tariff : drawn_tariff;
    node.mtbf_s = site.mtbf_h * kSecondsPerHour;
    node.mttr_s = site.mttr_h * kSecondsPerHour;
    nodes.push_back(std::move(node));
  }
  return nodes;
}

}  // namespace millrace
