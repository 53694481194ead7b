// A model's configuration as GGUF's metadata: the inverse of model/checkpoint/gguf_architecture.h.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "convert/gguf_writer.h"
#include "core/result.h"
#include "model/config.h"

namespace millrace {

/// general.architecture of a family (ModelConfig::family). Error: it is none that is written; those that are, are
/// named.
Result<std::string_view> gguf_architecture_of(const ModelConfig& model);

/// Sets the keys of the architecture. `config`: the source's config.json, for what a ModelConfig holds only derived.
/// Whether the keys say all of the configuration is for their reader to tell: see difference(). Error: a rope that GGUF
/// has no key for.
Status set_model_keys(GgufMetadataWriter& metadata, std::string_view architecture, const ModelConfig& model,
                      const nlohmann::json& config);

/// rope_freqs of a rope as Llama 3 scales it, [rotary_dim / 2]: what its frequencies are divided by. Empty for others.
std::vector<float> rope_divisors(const ModelConfig& model);

/// What a model that was read back has differently from the one that was written, in a few words; empty: nothing.
std::string difference(const ModelConfig& written, const ModelConfig& read);

}  // namespace millrace
