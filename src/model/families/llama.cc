// Llama and those that stay closest to it: Mistral, Mixtral, Ministral 3, SmolLM3, Granite, OLMo 2.

#include <algorithm>

#include "model/families/family.h"

namespace millrace {

namespace {

void set_window(ModelConfig& config, std::int64_t window) {
  for (LayerSpec& layer : config.layers) layer.attention.window = window;
}

}  // namespace

ModelConfig llama_config(ConfigReader& reader) {
  const ConfigDefaults defaults;
  ModelConfig config = read_base(reader, defaults);
  set_rope(config, read_rope(reader, defaults, config.layers.front().attention.head_dim));
  return config;
}

TensorNames llama_names(ConfigReader& reader, const ModelConfig& /*model*/) {
  TensorNames names;
  names.qkv_bias = names.out_bias = reader.flag("attention_bias", false);
  names.ffn_bias = reader.flag("mlp_bias", false);
  return names;
}

ModelConfig mistral_config(ConfigReader& reader) {
  const ConfigDefaults defaults{.kv_heads = 8, .max_position = 131072};
  ModelConfig config = read_base(reader, defaults);
  set_rope(config, read_rope(reader, defaults, config.layers.front().attention.head_dim));
  set_window(config, read_window(reader, 4096));
  return config;
}

TensorNames mistral_names(ConfigReader& /*reader*/, const ModelConfig& /*model*/) {
  return {};
}

// Queries beyond the original context are scaled up with the logarithm of their position.
ModelConfig ministral3_config(ConfigReader& reader) {
  const ConfigDefaults defaults{.kv_heads = 8, .head_dim = 128, .max_position = 262144, .theta = 1e6, .norm_eps = 1e-5};
  ModelConfig config = read_base(reader, defaults);
  RopeSpec rope = read_rope(reader, defaults, config.layers.front().attention.head_dim);
  double beta = 0.0;
  std::int64_t length = config.max_position;
  if (const nlohmann::json* parameters = rope_parameters(reader)) {
    ConfigReader own(*parameters);
    beta = own.number("llama_4_scaling_beta", 0.0, false);
    length = own.count("original_max_position_embeddings", length);
    if (const Status status = own.status(); !status.ok()) reader.reject(status.error().message);
  } else {
    // What a config without a word about rope means.
    rope.scaling = RopeScaling::yarn;
    rope.factor = 16.0;
    rope.original_max_position = length = 16384;
    rope.mscale = rope.mscale_all_dim = 1.0;
    beta = 0.1;
  }
  set_rope(config, rope);
  set_window(config, read_window(reader, std::nullopt));
  for (LayerSpec& layer : config.layers) {
    layer.attention.temperature_beta = static_cast<float>(beta);
    layer.attention.temperature_length = length;
  }
  return config;
}

ModelConfig mixtral_config(ConfigReader& reader) {
  const ConfigDefaults defaults{.kv_heads = 8, .max_position = 131072, .theta = 1e6, .norm_eps = 1e-5};
  ModelConfig config = read_base(reader, defaults);
  set_rope(config, read_rope(reader, defaults, config.layers.front().attention.head_dim));
  set_window(config, read_window(reader, std::nullopt));
  const MoeSpec moe = read_moe(reader, "num_local_experts", 8, "num_experts_per_tok", 2, "intermediate_size");
  for (LayerSpec& layer : config.layers) {
    layer.moe = moe;
    layer.intermediate = 0;
  }
  return config;
}

TensorNames mixtral_names(ConfigReader& /*reader*/, const ModelConfig& /*model*/) {
  TensorNames names;
  names.experts.router = {"mlp.gate", "block_sparse_moe.gate"};
  names.experts.each = "block_sparse_moe.experts";
  names.experts.each_gate = "w1";
  names.experts.each_up = "w3";
  names.experts.each_down = "w2";
  return names;
}

// Some layers, every fourth where nothing else is said, do not rotate.
ModelConfig smollm3_config(ConfigReader& reader) {
  const ConfigDefaults defaults{.kv_heads = 4, .max_position = 32768, .theta = 2e6, .tied_head = true};
  ModelConfig config = read_base(reader, defaults);
  set_rope(config, read_rope(reader, defaults, config.layers.front().attention.head_dim));
  const std::size_t layers = config.layers.size();
  std::vector<std::int64_t> rotates = reader.integers("no_rope_layers");
  const std::int64_t interval = reader.count("no_rope_layer_interval", 4);
  if (rotates.empty()) {
    for (std::size_t l = 0; l < layers; ++l) rotates.push_back((static_cast<std::int64_t>(l) + 1) % interval != 0);
  }
  if (rotates.size() < layers) {
    reader.reject(fmt::format("config: \"no_rope_layers\" has {} entries for {} layers", rotates.size(), layers));
    rotates.resize(layers);
  }
  const std::int64_t window = reader.flag("use_sliding_window", false) ? read_window(reader, std::nullopt) : 0;
  const std::vector<bool> sliding = sliding_layers(reader, layers, [&](std::size_t l) { return rotates[l] == 0; });
  for (std::size_t l = 0; l < layers; ++l) {
    if (rotates[l] == 0) config.layers[l].attention.rope = -1;
    if (sliding[l]) config.layers[l].attention.window = window;
  }
  return config;
}

ModelConfig granite_config(ConfigReader& reader) {
  ModelConfig config = llama_config(reader);
  config.embedding_scale = static_cast<float>(reader.number("embedding_multiplier", 1.0));
  config.residual_scale = static_cast<float>(reader.number("residual_multiplier", 1.0));
  config.logit_scale = static_cast<float>(1.0 / reader.number("logits_scaling", 1.0));
  for (LayerSpec& layer : config.layers) {
    layer.attention.scale = static_cast<float>(reader.number("attention_multiplier", 1.0));
  }
  return config;
}

// Norms stand behind attention and feed-forward instead of before them, and on all of q and k.
ModelConfig olmo2_config(ConfigReader& reader) {
  const ConfigDefaults defaults{.norm_eps = 1e-5};
  ModelConfig config = read_base(reader, defaults);
  set_rope(config, read_rope(reader, defaults, config.layers.front().attention.head_dim));
  for (LayerSpec& layer : config.layers) layer.attention.qk_norm = NormScope::all_heads;
  return config;
}

TensorNames olmo2_names(ConfigReader& reader, const ModelConfig& /*model*/) {
  TensorNames names;
  names.attention_norm = "";
  names.attention_post_norm = "post_attention_layernorm.weight";
  names.ffn_norm = "";
  names.ffn_post_norm = "post_feedforward_layernorm.weight";
  names.qkv_bias = names.out_bias = reader.flag("attention_bias", false);
  return names;
}

}  // namespace millrace
