// A model family is two functions: checkpoint config -> ModelConfig, and checkpoint tensor names -> TensorPlan. All
// families stand in one explicit table (families.cc); there is no registration at a distance.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "backend/matrix_source.h"
#include "core/result.h"
#include "model/checkpoint/checkpoint.h"
#include "model/config.h"

namespace millrace {

/// Reads `architectures` (or model_type) of a config and builds its ModelConfig. Every field is checked: counts
/// positive, heads a multiple of kv heads, sizes within limits. Errors name the key, its value and what was expected;
/// an unknown architecture is named together with the list of those supported.
Result<ModelConfig> parse_model_config(const nlohmann::json& config, const nlohmann::json& generation_config);

/// The architectures that parse_model_config knows, sorted.
std::vector<std::string_view> supported_architectures();

}  // namespace millrace
