// The part "attention" of a recipe.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "core/result.h"
#include "recipe/attention_policy.h"

namespace millrace {

/// Errors name `where` and the key.
Result<AttentionPolicy> parse_attention(const nlohmann::ordered_json& attention, const std::string& where);

}  // namespace millrace
