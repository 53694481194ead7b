#include "recipe/attention_profile.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <utility>

namespace millrace {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::int64_t kMostLayers = 1'000'000, kMostRows = std::int64_t{1} << 40;
constexpr double kLargest = double{std::numeric_limits<float>::max()};

/// That `object` has these keys and no others.
Status check_keys(const Json& object, std::span<const std::string_view> keys, const std::string& where) {
  if (!object.is_object()) return fail("{} is not an object", where);
  for (const auto& [key, value] : object.items()) {
    if (std::ranges::find(keys, key) == keys.end()) return fail("{}.\"{}\" is not known to this version", where, key);
  }
  for (const std::string_view key : keys) {
    if (!object.contains(key)) return fail("{}: \"{}\" must be there", where, key);
  }
  return Ok{};
}

Result<std::int64_t> parse_whole(const Json& object, std::string_view key, std::int64_t least, std::int64_t most,
                                 const std::string& where) {
  const Json& value = object.at(key);
  if (!value.is_number_integer() || value.get<std::int64_t>() < least || value.get<std::int64_t>() > most) {
    return fail("{}: \"{}\" is not a whole number from {} on", where, key, least);
  }
  return value.get<std::int64_t>();
}

/// `count` numbers; 0: any number of them, but one at least.
Result<std::vector<double>> parse_numbers(const Json& object, std::string_view key, std::size_t count, double least,
                                          double most, const std::string& where) {
  const Json& list = object.at(key);
  if (!list.is_array() || list.empty() || (count != 0 && list.size() != count)) {
    return fail("{}: \"{}\" is no list of {}numbers, one for each head", where, key,
                count != 0 ? fmt::format("{} ", count) : "");
  }
  std::vector<double> numbers;
  for (const Json& number : list) {
    const double value = number.is_number() ? number.get<double>() : -1.0;
    if (!(value >= least) || !(value <= most)) {
      return fail("{}: \"{}\" holds {} where numbers from {} to {} are expected", where, key,
                  number.is_number() ? number.dump() : "no number", least, most);
    }
    numbers.push_back(value);
  }
  return numbers;
}

/// The list of layers of a section, each parsed by `parse_layer(item, where)`.
template <typename Layer, typename ParseLayer>
Result<std::vector<Layer>> parse_layers(const Json& section, const std::string& where, ParseLayer parse_layer) {
  constexpr std::string_view kKeys[] = {"version", "layers"};
  if (section.is_object() && section.contains("version") && section["version"] != 1) {
    return fail("{}: \"version\" is {}; this version of the program knows 1", where, section["version"].dump());
  }
  MILLRACE_CHECK_OK(check_keys(section, kKeys, where));
  if (!section["layers"].is_array()) return fail("{}: \"layers\" is not a list", where);
  std::vector<Layer> layers;
  for (const Json& item : section["layers"]) {
    const std::string place = fmt::format("{}.\"layers\"[{}]", where, layers.size());
    MILLRACE_TRY(Layer layer, parse_layer(item, place));
    MILLRACE_TRY(layer.layer, parse_whole(item, "layer", 0, kMostLayers, place));
    MILLRACE_TRY(layer.rows, parse_whole(item, "rows", 1, kMostRows, place));
    if (!layers.empty() && layer.layer <= layers.back().layer) return fail("{}: layers must ascend", place);
    layers.push_back(std::move(layer));
  }
  return layers;
}

Result<AttentionProfile::Layer> parse_patterns(const Json& item, const std::string& where) {
  constexpr std::string_view kKeys[] = {"layer", "rows", "sinks", "recent", "between", "pages"};
  constexpr double kWhole = 1.001;  // the sum of many shares, rounded
  MILLRACE_CHECK_OK(check_keys(item, kKeys, where));
  AttentionProfile::Layer layer;
  MILLRACE_TRY(layer.sinks, parse_numbers(item, "sinks", 0, 0.0, kWhole, where));
  const std::size_t heads = layer.sinks.size();
  MILLRACE_TRY(layer.recent, parse_numbers(item, "recent", heads, 0.0, kWhole, where));
  MILLRACE_TRY(layer.between, parse_numbers(item, "between", heads, 0.0, kWhole, where));
  for (std::size_t h = 0; h < heads; ++h) {
    if (layer.sinks[h] + layer.recent[h] + layer.between[h] > kWhole) {
      return fail("{}: the shares of head {} come to more than 1", where, h);
    }
  }
  MILLRACE_TRY(layer.pages, parse_numbers(item, "pages", heads, 1.0, static_cast<double>(kMostRows), where));
  return layer;
}

Result<KvProfile::Numbers> parse_sizes(const Json& item, std::string_view key, std::size_t heads,
                                       const std::string& where) {
  constexpr std::string_view kKeys[] = {"largest", "rms", "largest_ratio", "rms_ratio"};
  const std::string place = fmt::format("{}.\"{}\"", where, key);
  const Json& object = item.at(key);
  MILLRACE_CHECK_OK(check_keys(object, kKeys, place));
  KvProfile::Numbers numbers;
  MILLRACE_TRY(numbers.largest, parse_numbers(object, "largest", heads, 0.0, kLargest, place));
  heads = numbers.largest.size();
  MILLRACE_TRY(numbers.rms, parse_numbers(object, "rms", heads, 0.0, kLargest, place));
  MILLRACE_TRY(numbers.largest_ratio, parse_numbers(object, "largest_ratio", heads, 1.0, kLargest, place));
  MILLRACE_TRY(numbers.rms_ratio, parse_numbers(object, "rms_ratio", heads, 1.0, kLargest, place));
  return numbers;
}

Result<KvProfile::Layer> parse_kv_layer(const Json& item, const std::string& where) {
  constexpr std::string_view kKeys[] = {"layer", "rows", "keys", "values"};
  MILLRACE_CHECK_OK(check_keys(item, kKeys, where));
  KvProfile::Layer layer;
  MILLRACE_TRY(layer.keys, parse_sizes(item, "keys", 0, where));
  MILLRACE_TRY(layer.values, parse_sizes(item, "values", layer.keys.largest.size(), where));
  return layer;
}

Json sizes_json(const KvProfile::Numbers& numbers) {
  return {{"largest", numbers.largest},
          {"rms", numbers.rms},
          {"largest_ratio", numbers.largest_ratio},
          {"rms_ratio", numbers.rms_ratio}};
}

}  // namespace

const AttentionProfile::Layer* AttentionProfile::of_layer(std::int64_t layer) const {
  const auto found = std::ranges::lower_bound(layers, layer, {}, &Layer::layer);
  return found != layers.end() && found->layer == layer ? &*found : nullptr;
}

Result<AttentionProfile> parse_attention_profile(const Json& section, const std::string& where) {
  AttentionProfile profile;
  MILLRACE_TRY(profile.layers, parse_layers<AttentionProfile::Layer>(section, where, parse_patterns));
  return profile;
}

Result<KvProfile> parse_kv_profile(const Json& section, const std::string& where) {
  KvProfile profile;
  MILLRACE_TRY(profile.layers, parse_layers<KvProfile::Layer>(section, where, parse_kv_layer));
  return profile;
}

Json attention_profile_json(const AttentionProfile& profile) {
  Json layers = Json::array();
  for (const AttentionProfile::Layer& layer : profile.layers) {
    layers.push_back({{"layer", layer.layer},
                      {"rows", layer.rows},
                      {"sinks", layer.sinks},
                      {"recent", layer.recent},
                      {"between", layer.between},
                      {"pages", layer.pages}});
  }
  return {{"version", 1}, {"layers", std::move(layers)}};
}

Json kv_profile_json(const KvProfile& profile) {
  Json layers = Json::array();
  for (const KvProfile::Layer& layer : profile.layers) {
    layers.push_back({{"layer", layer.layer},
                      {"rows", layer.rows},
                      {"keys", sizes_json(layer.keys)},
                      {"values", sizes_json(layer.values)}});
  }
  return {{"version", 1}, {"layers", std::move(layers)}};
}

}  // namespace millrace
