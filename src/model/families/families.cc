#include <algorithm>
#include <iterator>

#include "model/families/family.h"

namespace millrace {

namespace {

constexpr std::array kFamilies{
    Family{"LlamaForCausalLM", "llama", llama_config, llama_names, {2, -1, -1}},
    Family{"MistralForCausalLM", "mistral", mistral_config, mistral_names, {2, -1, -1}},
    Family{"Ministral3ForCausalLM", "ministral3", ministral3_config, mistral_names, {2, -1, -1}},
    // Multimodal wrappers: the text model inside is what runs, and its model_type says which it is.
    Family{"Mistral3ForConditionalGeneration", "mistral3", mistral_config, mistral_names, {2, -1, -1}},
    Family{"MixtralForCausalLM", "mixtral", mixtral_config, mixtral_names, {2, -1, -1}},
    Family{"Qwen2ForCausalLM", "qwen2", qwen2_config, qwen2_names},
    Family{"Qwen3ForCausalLM", "qwen3", qwen3_config, qwen3_names},
    Family{"Qwen3MoeForCausalLM", "qwen3_moe", qwen3_moe_config, qwen3_names},
    Family{"Gemma2ForCausalLM", "gemma2", gemma2_config, gemma2_names, {1, -1, -1}},
    Family{"Gemma3ForCausalLM", "gemma3_text", gemma3_config, gemma3_names, {1, -1, -1}},
    Family{"Gemma3ForConditionalGeneration", "gemma3", gemma3_config, gemma3_names, {1, -1, -1}},
    Family{"Gemma4ForCausalLM", "gemma4_text", gemma4_config, gemma4_names, {1, -1, -1}},
    Family{"Gemma4ForConditionalGeneration", "gemma4", gemma4_config, gemma4_names, {1, -1, -1}},
    Family{"Phi3ForCausalLM", "phi3", phi3_config, phi3_names, {32000, -1, -1}},
    Family{"Olmo2ForCausalLM", "olmo2", olmo2_config, olmo2_names, {50279, -1, -1}},
    Family{"SmolLM3ForCausalLM", "smollm3", smollm3_config, llama_names, {128001, -1, -1}},
    Family{"GlmForCausalLM", "glm", glm_config, glm_names, {151329, 151336, 151338}},
    Family{"Glm4ForCausalLM", "glm4", glm_config, glm4_names, {151329, 151336, 151338}},
    Family{"GraniteForCausalLM", "granite", granite_config, llama_names, {2, -1, -1}},
    Family{"GptOssForCausalLM", "gpt_oss", gpt_oss_config, gpt_oss_names},
};

const Family* by_type(std::string_view type) {
  const auto found =
      std::find_if(kFamilies.begin(), kFamilies.end(), [&](const Family& f) { return f.model_type == type; });
  return found == kFamilies.end() ? nullptr : &*found;
}

/// What a config says it is: architectures[0], else model_type, for messages.
std::string announced(const nlohmann::json& config) {
  for (const char* key : {"architectures", "model_type"}) {
    const auto found = config.find(key);
    if (found == config.end()) continue;
    const nlohmann::json& value = found->is_array() && !found->empty() ? found->front() : *found;
    if (value.is_string()) return value.get<std::string>().substr(0, 80);
  }
  return "";
}

/// A name that a file chose, safe to print.
std::string one_line(const std::string& name) {
  const std::string quoted = shown(name);
  return quoted.substr(1, quoted.size() - 2);
}

Result<const Family*> find_family(const nlohmann::json& config) {
  if (!config.is_object()) return fail("the config is not a JSON object");
  const std::string name = announced(config);
  if (name.empty()) return fail("config: neither \"architectures\" nor \"model_type\" says what the model is");
  const Family* family = nullptr;
  for (const Family& candidate : kFamilies) {
    if (candidate.architecture == name || (family == nullptr && candidate.model_type == name)) family = &candidate;
  }
  if (family == nullptr) {
    std::string list;
    for (const std::string_view known : supported_architectures())
      list += (list.empty() ? "" : ", ") + std::string(known);
    return fail("architecture {} is not supported; supported are {}", one_line(name), list);
  }
  if (const auto text = config.find("text_config"); text != config.end() && text->is_object()) {
    const auto type = text->find("model_type");
    if (type != text->end() && type->is_string()) {
      if (const Family* inner = by_type(type->get<std::string>())) return inner;
    }
  }
  return family;
}

/// End-of-sequence ids as generate() would take them: the generation config's, else the config's, else the family's.
std::vector<std::int32_t> end_ids(ConfigReader& reader, const nlohmann::json& generation_config, const Family& family) {
  const nlohmann::json* value = reader.find("eos_token_id");
  if (generation_config.is_object()) {
    const auto own = generation_config.find("eos_token_id");
    if (own != generation_config.end() && !own->is_null()) value = &*own;
  }
  std::vector<std::int32_t> ids;
  if (value == nullptr) {
    if (reader.is_null("eos_token_id")) return ids;
    std::copy_if(family.eos_ids.begin(), family.eos_ids.end(), std::back_inserter(ids),
                 [](auto id) { return id >= 0; });
    return ids;
  }
  const auto add = [&](const nlohmann::json& id) {
    const bool fits = id.is_number_integer() && id.get<std::int64_t>() >= 0 && id.get<std::int64_t>() <= INT32_MAX;
    if (!fits) return reader.reject("config: \"eos_token_id\" is neither a token id nor a list of them");
    ids.push_back(id.get<std::int32_t>());
  };
  if (value->is_array()) {
    for (const nlohmann::json& id : *value) add(id);
  } else {
    add(*value);
  }
  return ids;
}

}  // namespace

Result<ModelConfig> parse_model_config(const nlohmann::json& config, const nlohmann::json& generation_config) {
  MILLRACE_TRY(const Family* const family, find_family(config));
  ConfigReader reader(config);
  ModelConfig model = family->config(reader);
  model.family = family->model_type;
  model.architecture = family->architecture;
  model.eos_ids = end_ids(reader, generation_config, *family);
  // More than any model has; the loader keeps something for each of them before the budget is known.
  constexpr std::int64_t kMaxExpertsInAll = 1 << 18;
  std::int64_t experts = 0;
  for (const LayerSpec& layer : model.layers) experts += layer.moe.experts;
  if (experts > kMaxExpertsInAll) {
    reader.reject(fmt::format("config: {} experts in all layers, expected up to {}", experts, kMaxExpertsInAll));
  }
  MILLRACE_CHECK_OK(reader.status());
  return model;
}

Result<TensorNames> parse_tensor_names(const nlohmann::json& config, const ModelConfig& model) {
  MILLRACE_TRY(const Family* const family, find_family(config));
  ConfigReader reader(config);
  TensorNames names = family->names(reader, model);
  MILLRACE_CHECK_OK(reader.status());
  return names;
}

std::vector<std::string_view> supported_architectures() {
  std::vector<std::string_view> names;
  names.reserve(kFamilies.size());
  for (const Family& family : kFamilies) names.push_back(family.architecture);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace millrace
