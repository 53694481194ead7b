// Qwen2 and 2.5, Qwen3, Qwen3-MoE.

#include <algorithm>

#include "model/families/family.h"

namespace millrace {

namespace {

/// The window counts only where use_sliding_window says so; published configs name one that is switched off.
std::int64_t switched_window(ConfigReader& reader) {
  return reader.flag("use_sliding_window", false) ? read_window(reader, 4096) : 0;
}

ModelConfig dense_config(ConfigReader& reader, const ConfigDefaults& defaults) {
  ModelConfig config = read_base(reader, defaults);
  set_rope(config, read_rope(reader, defaults, config.layers.front().attention.head_dim));
  const std::int64_t window = switched_window(reader);
  const std::int64_t first = reader.integer("max_window_layers", 28, 0, 1 << 20);
  const std::vector<bool> sliding = sliding_layers(
      reader, config.layers.size(), [&](std::size_t l) { return static_cast<std::int64_t>(l) >= first; });
  for (std::size_t l = 0; l < config.layers.size(); ++l) {
    if (sliding[l]) config.layers[l].attention.window = window;
  }
  return config;
}

}  // namespace

ModelConfig qwen2_config(ConfigReader& reader) {
  return dense_config(reader, {.kv_heads = 32, .max_position = 32768});
}

TensorNames qwen2_names(ConfigReader& /*reader*/, const ModelConfig& /*model*/) {
  TensorNames names;
  names.qkv_bias = true;
  return names;
}

ModelConfig qwen3_config(ConfigReader& reader) {
  ModelConfig config = dense_config(reader, {.kv_heads = 32, .head_dim = 128, .max_position = 32768});
  for (LayerSpec& layer : config.layers) layer.attention.qk_norm = NormScope::per_head;
  return config;
}

ModelConfig qwen3_moe_config(ConfigReader& reader) {
  const ConfigDefaults defaults{.intermediate = 6144, .kv_heads = 4, .max_position = 32768};
  ModelConfig config = read_base(reader, defaults);
  set_rope(config, read_rope(reader, defaults, config.layers.front().attention.head_dim));
  const std::int64_t window = switched_window(reader);
  const char* const experts = reader.has("num_experts") ? "num_experts" : "num_local_experts";
  MoeSpec moe = read_moe(reader, experts, 128, "num_experts_per_tok", 8, "moe_intermediate_size");
  moe.weighting = reader.flag("norm_topk_prob", false) ? ExpertWeighting::softmax_then_top_k_normalized
                                                       : ExpertWeighting::softmax_then_top_k;
  const std::vector<std::int64_t> dense = reader.integers("mlp_only_layers");
  const std::int64_t step = reader.count("decoder_sparse_step", 1);
  for (std::size_t l = 0; l < config.layers.size(); ++l) {
    LayerSpec& layer = config.layers[l];
    layer.attention.qk_norm = NormScope::per_head;
    layer.attention.window = window;
    const auto index = static_cast<std::int64_t>(l);
    if (std::find(dense.begin(), dense.end(), index) == dense.end() && (index + 1) % step == 0) {
      layer.moe = moe;
      layer.intermediate = 0;
    }
  }
  return config;
}

TensorNames qwen3_names(ConfigReader& reader, const ModelConfig& /*model*/) {
  TensorNames names;
  names.qkv_bias = names.out_bias = reader.flag("attention_bias", false);
  return names;
}

}  // namespace millrace
