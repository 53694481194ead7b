#include "recipe/recipe.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/json_extent.h"
#include "quant/kv_codec.h"
#include "recipe/attention_parser.h"

namespace millrace {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kDeepest = 16, kMostValues = 100'000;

Result<WeightFormat> parse_weight_format(const Json& value, const std::string& where) {
  if (!value.is_string()) return fail("{} is not the name of a format, such as \"int8\"", where);
  const auto& name = value.get_ref<const std::string&>();
  if (name == "stored") return WeightFormat();
  const std::optional<CodeFormat> format = code_format_from_name(name);
  if (!format) {
    return fail(
        "{}: \"{}\" is not supported; this version has stored, int8, int4, int4.g32, int4.g64, int4.g128, "
        "each int4 with .sym, nvfp4, mxfp4 and fp8_e4m3, and all of these with .a16",
        where, name);
  }
  return WeightFormat(format);
}

Status parse_weights(const Json& weights, const std::string& name, Recipe& recipe) {
  if (!weights.is_object()) return fail("{}: \"weights\" is not an object", name);
  for (const auto& [pattern, value] : weights.items()) {
    MILLRACE_TRY(const WeightFormat format,
                 parse_weight_format(value, fmt::format("{}: \"weights\".\"{}\"", name, pattern)));
    if (pattern == "default") {
      recipe.default_weights = format;
    } else {
      recipe.weights.push_back({pattern, format});
    }
  }
  return Ok{};
}

Status parse_kv(const Json& kv, const std::string& name, Recipe& recipe) {
  if (!kv.is_object()) return fail("{}: \"kv\" is not an object", name);
  for (const auto& [key, value] : kv.items()) {
    if (key != "format")
      return fail("{}: \"kv\".\"{}\" is not supported by this version (it has \"format\")", name, key);
    const std::string format = value.is_string() ? value.get<std::string>() : value.dump();
    recipe.kv_format = kv_format_from_name(format);
    if (!recipe.kv_format) {
      return fail("{}: \"kv\".\"format\": \"{}\" is not supported; this version has {}", name, format,
                  kv_format_names(kKvFormats));
    }
  }
  return Ok{};
}

constexpr std::pair<std::string_view, SkipMethod> kSkipMethods[] = {
    {"teal", SkipMethod::teal}, {"down", SkipMethod::down}, {"cats", SkipMethod::cats}};

Result<std::vector<ThresholdRule>> parse_thresholds(const Json& thresholds, const std::string& where) {
  if (!thresholds.is_object()) return fail("{} is not an object of patterns and numbers", where);
  std::vector<ThresholdRule> rules;
  for (const auto& [pattern, value] : thresholds.items()) {
    const double threshold = value.is_number() ? value.get<double>() : -1.0;
    if (!(threshold >= 0.0) || threshold > double{std::numeric_limits<float>::max()}) {
      return fail("{}.\"{}\": {} is not a number from 0 on", where, pattern, value.dump());
    }
    rules.push_back({pattern, static_cast<float>(threshold)});
  }
  return rules;
}

Result<double> parse_share(const Json& value, const std::string& place) {
  const double share = value.is_number() ? value.get<double>() : 0.0;
  if (!(share > 0.0) || share > 1.0) return fail("{}: {} is not a number above 0 and up to 1", place, value.dump());
  return share;
}

Result<NeuronSkipping> parse_neurons(const Json& activations, const std::string& where) {
  NeuronSkipping skipping;
  const bool exact = activations.at("method") == "relu";
  bool imposed = false, limit = false;
  for (const auto& [key, value] : activations.items()) {
    const std::string place = fmt::format("{}.\"{}\"", where, key);
    if (key == "method") continue;
    if (exact) return fail("{} is not supported: with \"method\": \"relu\" there is nothing else to say", place);
    if (key == "profile") {
      if (!value.is_string() || value.get_ref<const std::string&>().empty())
        return fail("{} is not the name of a file that `millrace calibrate --predictor` has written", place);
      skipping.profile_file = value.get<std::string>();
    } else if (key == "imposed") {
      MILLRACE_TRY(skipping.density, parse_share(value, place));
      imposed = true;
    } else if (key == "dense_above") {
      MILLRACE_TRY(skipping.dense_above, parse_share(value, place));
      limit = true;
    } else {
      return fail("{} is not supported by this version (it has \"profile\", \"dense_above\" and \"imposed\")", place);
    }
  }
  if (exact) return skipping;
  if (imposed != skipping.profile_file.empty() || (imposed && limit)) {
    return fail("{}: give \"profile\", and \"dense_above\" with it if you like, or \"imposed\" alone", where);
  }
  skipping.method = imposed ? NeuronMethod::imposed : NeuronMethod::predicted;
  return skipping;
}

Result<InputSkipping> parse_activations(const Json& activations, const std::string& where) {
  if (!activations.is_object()) return fail("{} is not an object", where);
  InputSkipping skipping;
  bool method = false;
  for (const auto& [key, value] : activations.items()) {
    const std::string place = fmt::format("{}.\"{}\"", where, key);
    if (key == "method") {
      const Json& wanted = value;  // which a lambda may capture
      const auto found = std::ranges::find_if(kSkipMethods, [&](const auto& name) { return wanted == name.first; });
      if (found == std::end(kSkipMethods)) {
        return fail("{}: {} is not supported; this version has teal, down, cats, hot_cold and relu", place,
                    value.dump());
      }
      skipping.method = found->second;
      method = true;
    } else if (key == "profile") {
      if (!value.is_string() || value.get_ref<const std::string&>().empty()) {
        return fail("{} is not the name of a file that `millrace calibrate` has written", place);
      }
      skipping.profile_file = value.get<std::string>();
    } else if (key == "density") {
      MILLRACE_TRY(skipping.density, parse_share(value, place));
    } else if (key == "thresholds") {
      MILLRACE_TRY(skipping.thresholds, parse_thresholds(value, place));
    } else if (key == "imposed") {
      MILLRACE_TRY(skipping.imposed, parse_share(value, place));
    } else {
      return fail(
          "{} is not supported by this version (it has \"method\", \"profile\", \"density\", \"thresholds\" and "
          "\"imposed\")",
          place);
    }
  }
  if (!method) return fail("{}: \"method\" must be there", where);
  if (skipping.imposed > 0.0) {
    if (skipping.profile_file.empty() && skipping.density == 0.0 && skipping.thresholds.empty()) return skipping;
    return fail("{}: with \"imposed\", which draws inputs by lot, there is nothing else to say", where);
  }
  if (skipping.profile_file.empty() != (skipping.density == 0.0)) {
    return fail("{}: \"profile\" and \"density\" go together", where);
  }
  if (skipping.profile_file.empty() && skipping.thresholds.empty()) {
    return fail("{}: give \"profile\" and \"density\", \"thresholds\", or \"imposed\"", where);
  }
  return skipping;
}

}  // namespace

bool matches(std::string_view pattern, std::string_view text) {
  // Where the text stops matching, the last star takes one character more.
  std::size_t p = 0, t = 0, star = std::string_view::npos, taken = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      taken = t;
    } else if (p < pattern.size() && pattern[p] == text[t]) {
      ++p;
      ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++taken;
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', p) == std::string_view::npos;
}

WeightFormat Recipe::weights_of(std::string_view layer) const {
  for (auto rule = weights.rbegin(); rule != weights.rend(); ++rule) {
    if (matches(rule->pattern, layer)) return rule->format;
  }
  if (layer == "lm_head" && default_weights && default_weights->four_bits()) {
    return CodeFormat{.float_inputs = default_weights->float_inputs};
  }
  return default_weights;
}

bool Recipe::lossless() const {
  return !default_weights && !byte_inputs && attention.reads_all() && !activations && !neurons &&
         kv_format.value_or(KvFormat::f32) == KvFormat::f32 &&
         std::ranges::none_of(weights, [](const WeightRule& rule) { return rule.format.has_value(); });
}

Result<Recipe> parse_recipe(std::string_view text, const std::string& name) {
  const JsonExtent extent = json_extent(text, kDeepest);
  if (extent.depth > kDeepest || extent.values > kMostValues) return fail("{}: too large for a recipe", name);
  const Json document = Json::parse(text, nullptr, false);
  if (!document.is_object()) return fail("{}: not a JSON object", name);
  const auto version = document.find("millrace_recipe");
  if (version == document.end() || *version != 1) return fail("{}: \"millrace_recipe\" is not 1", name);
  Recipe recipe;
  for (const auto& [key, value] : document.items()) {
    if (key == "weights") {
      MILLRACE_CHECK_OK(parse_weights(value, name, recipe));
    } else if (key == "kv") {
      MILLRACE_CHECK_OK(parse_kv(value, name, recipe));
    } else if (key == "attention") {
      MILLRACE_TRY(recipe.attention, parse_attention(value, name + ": \"attention\""));
    } else if (key == "activations") {
      const std::string where = name + ": \"activations\"";
      const auto method = value.is_object() ? value.find("method") : value.end();
      if (value.is_object() && method != value.end() && (*method == "hot_cold" || *method == "relu")) {
        MILLRACE_TRY(recipe.neurons, parse_neurons(value, where));
      } else {
        MILLRACE_TRY(recipe.activations, parse_activations(value, where));
      }
    } else if (key == "inputs") {
      if (value != "int8") return fail("{}: \"inputs\" is not \"int8\", which is all that there is", name);
      recipe.byte_inputs = true;
    } else if (key != "millrace_recipe") {
      return fail(
          "{}: \"{}\" is not supported by this version (it has \"weights\", \"inputs\", \"kv\", \"attention\" and "
          "\"activations\")",
          name, key);
    }
  }
  return recipe;
}

}  // namespace millrace
