#include "recipe/recipe.h"

#include <algorithm>
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
  return !default_weights && !byte_inputs && attention.reads_all() &&
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
    } else if (key == "inputs") {
      if (value != "int8") return fail("{}: \"inputs\" is not \"int8\", which is all that there is", name);
      recipe.byte_inputs = true;
    } else if (key != "millrace_recipe") {
      return fail(
          "{}: \"{}\" is not supported by this version (it has \"weights\", \"inputs\", \"kv\" and \"attention\")",
          name, key);
    }
  }
  return recipe;
}

}  // namespace millrace
