// A model family is two functions: checkpoint config -> ModelConfig, and checkpoint tensor names -> TensorNames. All
// families stand in one explicit table (families.cc); there is no registration at a distance.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "model/config.h"
#include "model/families/config_reader.h"
#include "model/tensor_names.h"

namespace millrace {

/// Reads `architectures` (or model_type) of a config and builds its ModelConfig. Every field is checked: counts
/// positive, heads a multiple of kv heads, sizes within limits. Errors name the key, its value and what was expected;
/// an unknown architecture is named together with the list of those supported.
Result<ModelConfig> parse_model_config(const nlohmann::json& config, const nlohmann::json& generation_config);

/// How the tensors of a checkpoint with this config are named and laid out. `model` is parse_model_config's answer.
Result<TensorNames> parse_tensor_names(const nlohmann::json& config, const ModelConfig& model);

/// The architectures that parse_model_config knows, sorted.
std::vector<std::string_view> supported_architectures();

/// A row of the table in families.cc.
struct Family {
  std::string_view architecture;  // "LlamaForCausalLM"
  std::string_view model_type;    // "llama"; of the text_config where there is one
  ModelConfig (*config)(ConfigReader& reader);
  TensorNames (*names)(ConfigReader& reader, const ModelConfig& model);
  // End-of-sequence ids where no config says any, as transformers' config class has them; -1: none.
  std::array<std::int32_t, 3> eos_ids = {-1, -1, -1};
};

// One file a line of models; see there for what is special about each.
ModelConfig llama_config(ConfigReader& reader);
TensorNames llama_names(ConfigReader& reader, const ModelConfig& model);
ModelConfig mistral_config(ConfigReader& reader);
ModelConfig ministral3_config(ConfigReader& reader);
ModelConfig mixtral_config(ConfigReader& reader);
TensorNames mistral_names(ConfigReader& reader, const ModelConfig& model);
TensorNames mixtral_names(ConfigReader& reader, const ModelConfig& model);
ModelConfig smollm3_config(ConfigReader& reader);
ModelConfig granite_config(ConfigReader& reader);
ModelConfig olmo2_config(ConfigReader& reader);
TensorNames olmo2_names(ConfigReader& reader, const ModelConfig& model);
ModelConfig qwen2_config(ConfigReader& reader);
TensorNames qwen2_names(ConfigReader& reader, const ModelConfig& model);
ModelConfig qwen3_config(ConfigReader& reader);
ModelConfig qwen3_moe_config(ConfigReader& reader);
TensorNames qwen3_names(ConfigReader& reader, const ModelConfig& model);
ModelConfig gemma2_config(ConfigReader& reader);
TensorNames gemma2_names(ConfigReader& reader, const ModelConfig& model);
ModelConfig gemma3_config(ConfigReader& reader);
TensorNames gemma3_names(ConfigReader& reader, const ModelConfig& model);
ModelConfig gemma4_config(ConfigReader& reader);
TensorNames gemma4_names(ConfigReader& reader, const ModelConfig& model);
ModelConfig phi3_config(ConfigReader& reader);
TensorNames phi3_names(ConfigReader& reader, const ModelConfig& model);
ModelConfig glm_config(ConfigReader& reader);
TensorNames glm_names(ConfigReader& reader, const ModelConfig& model);
TensorNames glm4_names(ConfigReader& reader, const ModelConfig& model);
ModelConfig gpt_oss_config(ConfigReader& reader);
TensorNames gpt_oss_names(ConfigReader& reader, const ModelConfig& model);

}  // namespace millrace
