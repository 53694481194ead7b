#include "recipe/activation_profile.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/json_extent.h"

namespace millrace {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kDeepest = 8, kMostValues = 4'000'000;
constexpr std::uint64_t kMostKeyPairs = 1'000'000;  // of objects, which are searched key by key
constexpr std::size_t kLongestModel = 256;
constexpr std::string_view kKeys[] = {"millrace_activations", "model", "tokens", "inputs", "gates", "attention", "kv"};

Result<MagnitudeQuantiles> parse_quantiles(const Json& numbers, const std::string& where) {
  if (!numbers.is_array() || numbers.size() < 2) return fail("{}: \"magnitudes\" is no list of numbers", where);
  MagnitudeQuantiles quantiles;
  for (const Json& number : numbers) {
    const double value = number.is_number() ? number.get<double>() : -1.0;
    if (!(value >= 0.0) || value > double{std::numeric_limits<float>::max()} ||
        (!quantiles.empty() && static_cast<float>(value) < quantiles.back())) {
      return fail("{}: \"magnitudes\" holds {} where numbers from 0 on must ascend", where,
                  number.is_number() ? number.dump() : "no number");
    }
    quantiles.push_back(static_cast<float>(value));
  }
  return quantiles;
}

Result<std::vector<ActivationProfile::Entry>> parse_entries(const Json& document, const char* key,
                                                            const std::string& name) {
  std::vector<ActivationProfile::Entry> entries;
  const auto list = document.find(key);
  if (list == document.end() || !list->is_array()) return fail("{}: \"{}\" is not a list", name, key);
  for (const Json& item : *list) {
    const std::string where = fmt::format("{}: \"{}\"[{}]", name, key, entries.size());
    if (!item.is_object()) return fail("{} is not an object", where);
    ActivationProfile::Entry entry;
    const auto layers = item.find("layers"), magnitudes = item.find("magnitudes");
    if (layers == item.end() || !layers->is_array() || layers->empty() ||
        !std::ranges::all_of(*layers, [](const Json& layer) { return layer.is_string(); })) {
      return fail("{}: \"layers\" is no list of names", where);
    }
    for (const Json& layer : *layers) entry.layers.push_back(layer.get<std::string>());
    MILLRACE_TRY(entry.magnitudes, parse_quantiles(magnitudes == item.end() ? Json() : *magnitudes, where));
    entries.push_back(std::move(entry));
  }
  return entries;
}

const MagnitudeQuantiles* find(const std::vector<ActivationProfile::Entry>& entries, std::string_view layer) {
  const auto found = std::ranges::find_if(
      entries, [&](const auto& entry) { return std::ranges::find(entry.layers, layer) != entry.layers.end(); });
  return found == entries.end() ? nullptr : &found->magnitudes;
}

Json entries_json(const std::vector<ActivationProfile::Entry>& entries) {
  Json list = Json::array();
  for (const auto& entry : entries) list.push_back({{"layers", entry.layers}, {"magnitudes", entry.magnitudes}});
  return list;
}

}  // namespace

float magnitude_at(const MagnitudeQuantiles& quantiles, double share) {
  const double place = std::clamp(share, 0.0, 1.0) * static_cast<double>(quantiles.size() - 1);
  const auto below = std::min(static_cast<std::size_t>(place), quantiles.size() - 2);
  const double part = place - static_cast<double>(below);
  return static_cast<float>((1.0 - part) * quantiles[below] + part * quantiles[below + 1]);
}

const MagnitudeQuantiles* ActivationProfile::inputs_of(std::string_view layer) const {
  return find(inputs, layer);
}

const MagnitudeQuantiles* ActivationProfile::gate_of(std::string_view layer) const {
  return find(gates, layer);
}

Result<ActivationProfile> parse_activation_profile(std::string_view text, const std::string& name) {
  const JsonExtent extent = json_extent(text, kDeepest);
  if (extent.depth > kDeepest || extent.values > kMostValues || extent.key_pairs > kMostKeyPairs)
    return fail("{}: too large for a profile", name);
  const Json document = Json::parse(text, nullptr, false);
  const auto version = document.is_object() ? document.find("millrace_activations") : document.end();
  if (!document.is_object() || version == document.end() || *version != 1) {
    return fail("{}: no profile of activations that `millrace calibrate` has written", name);
  }
  for (const auto& [key, value] : document.items()) {
    if (std::ranges::find(kKeys, key) == std::end(kKeys))
      return fail("{}: \"{}\" is not known to this version", name, key);
  }
  ActivationProfile profile;
  const auto model = document.find("model"), tokens = document.find("tokens");
  if (model == document.end() || !model->is_string() || model->get_ref<const std::string&>().size() > kLongestModel ||
      tokens == document.end() || !tokens->is_number_integer()) {
    return fail("{}: \"model\" or \"tokens\" is missing", name);
  }
  profile.model = model->get<std::string>();
  profile.tokens = tokens->get<std::int64_t>();
  MILLRACE_TRY(profile.inputs, parse_entries(document, "inputs", name));
  MILLRACE_TRY(profile.gates, parse_entries(document, "gates", name));
  if (const auto section = document.find("attention"); section != document.end()) {
    MILLRACE_TRY(profile.attention, parse_attention_profile(*section, name + ": \"attention\""));
  }
  if (const auto section = document.find("kv"); section != document.end()) {
    MILLRACE_TRY(profile.kv, parse_kv_profile(*section, name + ": \"kv\""));
  }
  return profile;
}

std::string activation_profile_text(const ActivationProfile& profile) {
  Json document{{"millrace_activations", 1},
                {"model", profile.model},
                {"tokens", profile.tokens},
                {"inputs", entries_json(profile.inputs)},
                {"gates", entries_json(profile.gates)}};
  if (profile.attention) document["attention"] = attention_profile_json(*profile.attention);
  if (profile.kv) document["kv"] = kv_profile_json(*profile.kv);
  return document.dump() + "\n";
}

}  // namespace millrace
