// Checkpoints that others have quantised: GPTQ, AWQ, FP8 and compressed-tensors, as config.json's quantization_config
// declares them. docs/number-formats.md has the layouts.
#pragma once

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "core/result.h"
#include "model/checkpoint/checkpoint.h"

namespace millrace {

using TensorMap = std::map<std::string, StoredTensor, std::less<>>;

/// Joins what belongs to one weight: "NAME.qweight", "NAME.scales" and so on become "NAME.weight" of format codes, in
/// PyTorch's shape [outputs, inputs]. Tensors of other layers stay as they are. `what` names the checkpoint in
/// messages. Errors: a method of quantisation that is not known, or a variant of one; parts that are missing or do not
/// fit.
Status join_quantized(const nlohmann::json& config, std::string_view what, TensorMap& tensors);

}  // namespace millrace
