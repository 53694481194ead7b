// Gemma 2, Gemma 3 and Gemma 4 (text).

#include <cmath>

#include "model/families/family.h"

namespace millrace {

namespace {

constexpr std::string_view kSliding = "sliding_attention";
constexpr std::string_view kFull = "full_attention";

ConfigDefaults gemma_defaults() {
  return {.hidden = 2304,
          .intermediate = 9216,
          .heads = 8,
          .kv_heads = 4,
          .head_dim = 256,
          .max_position = 131072,
          .tied_head = true,
          .activation_key = "hidden_activation",
          .activation = "gelu_pytorch_tanh"};
}

/// Embeddings are multiplied by sqrt(hidden).
void scale_embeddings(ModelConfig& config) {
  config.embedding_scale = static_cast<float>(std::sqrt(static_cast<double>(config.hidden)));
}

void set_query_scale(ConfigReader& reader, ModelConfig& config) {
  const double scalar = reader.number("query_pre_attn_scalar", 256.0);
  for (LayerSpec& layer : config.layers) layer.attention.scale = static_cast<float>(1.0 / std::sqrt(scalar));
}

/// A soft cap that is null is off; one that is absent has the family's value.
float softcap(ConfigReader& reader, std::string_view key, double fallback) {
  return reader.is_null(key) ? 0.0f : static_cast<float>(reader.number(key, fallback, false));
}

TensorNames gemma_names(ConfigReader& reader) {
  TensorNames names;
  names.attention_post_norm = "post_attention_layernorm.weight";
  names.ffn_norm = "pre_feedforward_layernorm.weight";
  names.ffn_post_norm = "post_feedforward_layernorm.weight";
  names.qkv_bias = names.out_bias = reader.flag("attention_bias", false);
  return names;
}

void refuse_bidirectional(ConfigReader& reader) {
  const nlohmann::json* value = reader.find("use_bidirectional_attention");
  const bool on = value != nullptr && (*value == true || *value == "all");
  if (on) reader.reject("config: \"use_bidirectional_attention\" is on: only causal models generate text");
}

}  // namespace

ModelConfig gemma2_config(ConfigReader& reader) {
  ConfigDefaults defaults = gemma_defaults();
  defaults.vocab = 256000;
  defaults.max_position = 8192;
  ModelConfig config = read_base(reader, defaults);
  refuse_bidirectional(reader);
  set_rope(config, read_rope(reader, defaults, config.layers.front().attention.head_dim));
  scale_embeddings(config);
  set_query_scale(reader, config);
  config.logit_softcap = softcap(reader, "final_logit_softcapping", 30.0);
  const float cap = softcap(reader, "attn_logit_softcapping", 50.0);
  const std::int64_t window = read_window(reader, 4096);
  const std::vector<bool> sliding =
      sliding_layers(reader, config.layers.size(), [](std::size_t l) { return l % 2 == 0; });
  for (std::size_t l = 0; l < config.layers.size(); ++l) {
    config.layers[l].attention.softcap = cap;
    if (sliding[l]) config.layers[l].attention.window = window;
  }
  return config;
}

TensorNames gemma2_names(ConfigReader& reader, const ModelConfig& /*model*/) {
  TensorNames names = gemma_names(reader);
  names.norms_minus_one = true;
  return names;
}

// Sliding layers have a rotary embedding of their own, and norms stand on q and k. Attention has no soft cap, whatever
// attn_logit_softcapping says: transformers reads the key and never applies it.
ModelConfig gemma3_config(ConfigReader& reader) {
  ConfigDefaults defaults = gemma_defaults();
  defaults.vocab = 262208;
  defaults.theta = 1e6;
  ModelConfig config = read_base(reader, defaults);
  refuse_bidirectional(reader);
  scale_embeddings(config);
  set_query_scale(reader, config);
  config.logit_softcap = softcap(reader, "final_logit_softcapping", 0.0);
  const std::int32_t head_dim = config.layers.front().attention.head_dim;
  const std::int32_t full = add_rope(config, read_rope(reader, defaults, head_dim, kFull));
  const nlohmann::json* parameters = reader.object("rope_parameters");
  RopeSpec local{.rotary_dim = head_dim - head_dim % 2, .max_position = config.max_position};
  local.original_max_position = config.max_position;
  local.theta = reader.number("rope_local_base_freq", 10000.0);
  if (parameters != nullptr && parameters->contains(kSliding)) {
    const double theta = local.theta;
    local = read_rope(reader, {.max_position = config.max_position}, head_dim, kSliding);
    const nlohmann::json& own = (*parameters)[kSliding];
    if (!own.is_object() || !own.contains("rope_theta")) local.theta = theta;  // the one around is the full layers'
  }
  const std::int32_t sliding_rope = add_rope(config, local);
  const std::int64_t window = read_window(reader, 4096);
  const std::int64_t pattern = reader.count("sliding_window_pattern", 6);
  const std::vector<bool> sliding = sliding_layers(
      reader, config.layers.size(), [&](std::size_t l) { return (static_cast<std::int64_t>(l) + 1) % pattern != 0; });
  for (std::size_t l = 0; l < config.layers.size(); ++l) {
    AttentionSpec& attention = config.layers[l].attention;
    attention.qk_norm = NormScope::per_head;
    attention.rope = sliding[l] ? sliding_rope : full;
    if (sliding[l]) attention.window = window;
  }
  return config;
}

TensorNames gemma3_names(ConfigReader& reader, const ModelConfig& /*model*/) {
  TensorNames names = gemma_names(reader);
  names.norms_minus_one = true;
  return names;
}

namespace {

/// Heads of the full-attention layers, which differ from those of the sliding ones.
struct GlobalHeads {
  std::int32_t head_dim, kv_heads;
};

/// transformers 5 saves per_layer_config {"5": {"head_dim": …}}; published configs have global_head_dim and
/// num_global_key_value_heads.
GlobalHeads read_global_heads(ConfigReader& reader, std::size_t layer, const AttentionSpec& sliding, bool k_eq_v) {
  GlobalHeads heads{sliding.head_dim, sliding.kv_heads};
  const auto read = [&](ConfigReader& from, const char* dim, std::optional<std::int64_t> dim_fallback,
                        const char* count) {
    heads.head_dim = static_cast<std::int32_t>(from.integer(dim, dim_fallback, 1, 65536));
    heads.kv_heads = static_cast<std::int32_t>(from.integer(count, sliding.kv_heads, 1, 65536));
  };
  if (const nlohmann::json* overrides = reader.object("per_layer_config")) {
    const auto own = overrides->find(std::to_string(layer));
    if (own == overrides->end()) return heads;
    ConfigReader inner(*own);
    read(inner, "head_dim", sliding.head_dim, "num_key_value_heads");
    if (const Status status = inner.status(); !status.ok()) reader.reject(status.error().message);
  } else {
    read(reader, "global_head_dim", 512, "num_global_key_value_heads");
    if (!k_eq_v) heads.kv_heads = sliding.kv_heads;
  }
  check_heads(reader, sliding.heads, heads.head_dim);
  if (sliding.heads % heads.kv_heads != 0) {
    reader.reject(fmt::format("config: {} attention heads are no multiple of {} global key-value heads", sliding.heads,
                              heads.kv_heads));
  }
  return heads;
}

/// The last layers read the keys and values of the last layer of their kind that has its own.
void share_kv(ConfigReader& reader, ModelConfig& config, const std::vector<bool>& sliding, std::int64_t shared) {
  const std::size_t first = config.layers.size() - static_cast<std::size_t>(shared);
  const bool wide = reader.flag("use_double_wide_mlp", false);
  for (std::size_t l = first; l < config.layers.size(); ++l) {
    std::size_t source = first;
    while (source > 0 && sliding[source - 1] != sliding[l]) --source;
    if (source == 0) {
      reader.reject(fmt::format("config: layer {} shares keys and values, but no layer of its kind has its own", l));
      return;
    }
    AttentionSpec& own = config.layers[l].attention;
    const AttentionSpec& other = config.layers[source - 1].attention;
    if (own.head_dim != other.head_dim || own.kv_heads != other.kv_heads) {
      reader.reject(fmt::format("config: layer {} shares the keys of layer {}, which has other heads", l, source - 1));
      return;
    }
    own.kv_source = static_cast<std::int32_t>(source - 1);
    if (wide) config.layers[l].intermediate *= 2;
  }
}

}  // namespace

// Full-attention layers have wider heads, of which only a part rotates, and may use the keys as values; the last layers
// share keys and values; embeddings per layer; a dense part and experts side by side.
ModelConfig gemma4_config(ConfigReader& reader) {
  ConfigDefaults defaults = gemma_defaults();
  defaults.vocab = 262144;
  ModelConfig config = read_base(reader, defaults);
  refuse_bidirectional(reader);
  scale_embeddings(config);
  config.logit_softcap = softcap(reader, "final_logit_softcapping", 0.0);
  const std::size_t layers = config.layers.size();
  const std::int64_t window = read_window(reader, 512);
  std::vector<bool> sliding = sliding_layers(reader, layers, [](std::size_t l) { return (l + 1) % 6 != 0; });
  sliding.back() = false;
  const bool k_eq_v = reader.flag("attention_k_eq_v", false);
  const bool has_ropes = reader.object("rope_parameters") != nullptr;
  for (std::size_t l = 0; l < layers; ++l) {
    AttentionSpec& attention = config.layers[l].attention;
    attention.scale = 1.0f;
    attention.qk_norm = NormScope::per_head;
    attention.value_norm = true;
    if (sliding[l]) {
      attention.window = window;
    } else {
      const GlobalHeads heads = read_global_heads(reader, l, config.layers[l].attention, k_eq_v);
      attention.head_dim = heads.head_dim;
      attention.kv_heads = heads.kv_heads;
      attention.value_is_key = k_eq_v;
    }
    RopeSpec rope;
    if (has_ropes) {
      rope = read_rope(reader, defaults, attention.head_dim, sliding[l] ? kSliding : kFull);
    } else {
      rope = {.rotary_dim = attention.head_dim, .max_position = config.max_position};
      rope.original_max_position = config.max_position;
      if (!sliding[l]) {
        rope.theta = 1e6;
        rope.scaling = RopeScaling::proportional;
        rope.partial_rotary_factor = 0.25;
      }
    }
    attention.rope = add_rope(config, rope);
  }
  config.per_layer_input = reader.integer("hidden_size_per_layer_input", 256, 0, std::int64_t{1} << 20);
  if (config.per_layer_input > 0 && reader.count("vocab_size_per_layer_input", 262144) != config.vocab) {
    reader.reject("config: \"vocab_size_per_layer_input\" differs from \"vocab_size\", which is not supported");
  }
  if (reader.flag("enable_moe_block", false)) {
    const MoeSpec moe =
        read_moe(reader, "num_experts", std::nullopt, "top_k_experts", std::nullopt, "moe_intermediate_size");
    for (LayerSpec& layer : config.layers) layer.moe = moe;
  }
  share_kv(reader, config, sliding,
           reader.integer("num_kv_shared_layers", 0, 0, static_cast<std::int64_t>(layers) - 1));
  return config;
}

TensorNames gemma4_names(ConfigReader& reader, const ModelConfig& /*model*/) {
  TensorNames names = gemma_names(reader);
  names.layer_scalar = true;
  names.per_layer_inputs = true;
  names.experts.router = {"router.proj"};
  names.experts.gate_up = "experts.gate_up_proj";
  names.experts.down = "experts.down_proj";
  names.experts.each = "experts";
  return names;
}

}  // namespace millrace
