// What general.architecture of a GGUF file stands for, and how its metadata and tensor names read in Hugging Face's
// terms. The facts are those of the format's own converter and of its tensor name table (PyPI package gguf).
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "core/result.h"
#include "model/checkpoint/gguf_file.h"
#include "model/checkpoint/gguf_keys.h"

namespace millrace {

using GgufTensors = std::map<std::string_view, const GgufTensor*, std::less<>>;  // by the file's own names

/// What all architectures have in common, read and checked before the architecture's own function runs.
struct GgufModelSizes {
  std::int64_t layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, vocab = 0, context = 0;
};

/// What an architecture's own function works with.
struct GgufTranslation {
  GgufKeys& keys;  // prefix is the architecture
  const GgufTensors& tensors;
  const GgufModelSizes& sizes;
  nlohmann::json& config;

  [[nodiscard]] bool has_tensor(std::string_view name) const { return tensors.contains(name); }
};

struct GgufArchitecture {
  std::string_view name;  // general.architecture
  bool permuted = false;  // rows of query and key projections are stored for interleaved rotary pairs
  bool norms_include_one = false;
  /// Stems of block tensors (between "blk.N." and ".weight") that read differently than the common ones.
  std::span<const std::pair<std::string_view, std::string_view>> stems;
  /// Adds what is special to the config; errors go to the keys.
  void (*translate)(GgufTranslation& model) = nullptr;
};

/// Null where it is unknown.
const GgufArchitecture* find_gguf_architecture(std::string_view name);
std::string supported_gguf_architectures();

/// The config.json of the model, in the form of published ones. Errors: keys that are missing or wrong.
Result<nlohmann::json> gguf_config(const GgufArchitecture& architecture, const GgufMetadata& metadata,
                                   const GgufTensors& tensors, std::string_view what);

/// The Hugging Face name of a tensor; its own name where it has none.
std::string gguf_tensor_name(const GgufArchitecture& architecture, std::string_view name);

}  // namespace millrace
