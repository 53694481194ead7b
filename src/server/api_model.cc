#include "server/api_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "server/api_json.h"

namespace millrace {

namespace {

/// A number of generation_config.json within [low, high]; `fallback` where there is none.
float configured(const nlohmann::json& config, const char* key, float fallback, float low, float high) {
  const auto found = config.find(key);
  if (found == config.end() || !found->is_number()) return fallback;
  const double number = found->get<double>();
  return number >= low && number <= high ? static_cast<float>(number) : fallback;
}

std::string model_object(const ServedModel& model, std::string_view id) {
  return fmt::format(
      R"({{"id":{},"object":"model","created":{},"owned_by":"millrace","root":{},"max_model_len":{},"vocab_size":{}}})",
      json_string(id), model.created, json_string(model.name()), model.max_sequence_tokens, model.vocab);
}

}  // namespace

SamplingDefaults SamplingDefaults::from(const nlohmann::json& config) {
  SamplingDefaults defaults;
  if (!config.is_object()) return defaults;
  constexpr float kSmallest = 1e-6f;  // of what has to be above zero
  defaults.temperature = configured(config, "temperature", defaults.temperature, 0.0f, 2.0f);
  defaults.top_p = configured(config, "top_p", defaults.top_p, kSmallest, 1.0f);
  defaults.min_p = configured(config, "min_p", defaults.min_p, 0.0f, 1.0f);
  defaults.repetition_penalty =
      configured(config, "repetition_penalty", defaults.repetition_penalty, kSmallest, 100.0f);
  defaults.top_k = static_cast<std::int32_t>(configured(config, "top_k", 0.0f, 0.0f, 1e9f));
  return defaults;
}

bool ServedModel::answers_to(std::string_view id) const {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

std::string system_fingerprint_of(std::string_view numeric_class) {
  std::uint64_t hash = 0xCBF29CE484222325ull;  // FNV-1a
  for (const char c : numeric_class) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ull;
  }
  return fmt::format("fp_{:010x}", hash >> 24);
}

std::string models_json(const ServedModel& model) {
  std::string out = R"({"object":"list","data":[)";
  for (const std::string& id : model.ids) {
    if (out.back() != '[') out += ',';
    out += model_object(model, id);
  }
  out += "]}";
  return out;
}

ApiResult<std::string> model_json(const ServedModel& model, std::string_view id) {
  if (!model.answers_to(id)) return ApiError::unknown_model(id);
  return model_object(model, id);
}

}  // namespace millrace
