// gpt-oss: learned attention sinks, alternating windows, experts with a clamped gate.

#include "model/families/family.h"

namespace millrace {

ModelConfig gpt_oss_config(ConfigReader& reader) {
  const ConfigDefaults defaults{.vocab = 201088,
                                .hidden = 2880,
                                .intermediate = 2880,
                                .heads = 64,
                                .kv_heads = 8,
                                .head_dim = 64,
                                .max_position = 131072,
                                .theta = 150000.0,
                                .norm_eps = 1e-5};
  ModelConfig config = read_base(reader, defaults);
  RopeSpec rope = read_rope(reader, defaults, config.layers.front().attention.head_dim);
  if (rope_parameters(reader) == nullptr) {
    rope.scaling = RopeScaling::yarn;
    rope.factor = 32.0;
    rope.truncate = false;
    rope.original_max_position = 4096;
  }
  set_rope(config, rope);
  const std::int64_t window = read_window(reader, 128);
  const std::vector<bool> sliding =
      sliding_layers(reader, config.layers.size(), [](std::size_t l) { return l % 2 == 0; });
  const char* const experts = reader.has("num_local_experts") ? "num_local_experts" : "num_experts";
  MoeSpec moe = read_moe(reader, experts, 128, "num_experts_per_tok", 4, "intermediate_size");
  moe.weighting = ExpertWeighting::top_k_then_softmax;
  if (reader.number("swiglu_alpha", 1.702) != 1.702) reader.reject("config: \"swiglu_alpha\" is not 1.702");
  const auto limit = static_cast<float>(reader.number("swiglu_limit", 7.0));
  for (std::size_t l = 0; l < config.layers.size(); ++l) {
    LayerSpec& layer = config.layers[l];
    layer.attention.sinks = true;
    if (sliding[l]) layer.attention.window = window;
    layer.moe = moe;
    layer.intermediate = 0;
    layer.activation = Activation::swiglu_clamp;
    layer.clamp_limit = limit;
  }
  return config;
}

TensorNames gpt_oss_names(ConfigReader& reader, const ModelConfig& /*model*/) {
  TensorNames names;
  names.qkv_bias = names.out_bias = reader.flag("attention_bias", true);
  names.experts.router = {"mlp.router"};
  names.experts.router_bias = true;
  names.experts.expert_bias = true;
  names.experts.transposed = true;
  names.experts.interleaved = true;
  return names;
}

}  // namespace millrace
