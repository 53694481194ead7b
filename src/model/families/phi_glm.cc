// Phi-3 and Phi-4, GLM-4: fused projections, and in GLM rotary pairs of neighbours.

#include "model/families/family.h"

namespace millrace {

ModelConfig phi3_config(ConfigReader& reader) {
  const ConfigDefaults defaults{.max_position = 4096, .original_max_position = 4096, .norm_eps = 1e-5};
  ModelConfig config = read_base(reader, defaults);
  RopeSpec rope = read_rope(reader, defaults, config.layers.front().attention.head_dim);
  if (rope.scaling != RopeScaling::none && rope.scaling != RopeScaling::longrope) {
    reader.reject("config: the rope of a Phi-3 model is neither default nor longrope");
  }
  set_rope(config, rope);
  const std::int64_t window = read_window(reader, std::nullopt);
  for (LayerSpec& layer : config.layers) layer.attention.window = window;
  return config;
}

TensorNames phi3_names(ConfigReader& /*reader*/, const ModelConfig& /*model*/) {
  TensorNames names;
  names.fused_qkv = true;
  names.fused_gate_up = true;
  return names;
}

ModelConfig glm_config(ConfigReader& reader) {
  const ConfigDefaults defaults{
      .kv_heads = 2, .head_dim = 128, .max_position = 131072, .partial_rotary_factor = 0.5, .norm_eps = 1.5625e-7};
  ModelConfig config = read_base(reader, defaults);
  set_rope(config, read_rope(reader, defaults, config.layers.front().attention.head_dim));
  return config;
}

TensorNames glm_names(ConfigReader& reader, const ModelConfig& /*model*/) {
  TensorNames names;
  names.qkv_bias = reader.flag("attention_bias", true);
  names.interleaved_rope = true;
  names.fused_gate_up = true;
  return names;
}

TensorNames glm4_names(ConfigReader& reader, const ModelConfig& model) {
  TensorNames names = glm_names(reader, model);
  names.attention_post_norm = "post_self_attn_layernorm.weight";
  names.ffn_post_norm = "post_mlp_layernorm.weight";
  return names;
}

}  // namespace millrace
