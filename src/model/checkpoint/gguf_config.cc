// Metadata: what all architectures share, and rotary scaling.
#include <algorithm>

#include "model/checkpoint/gguf_architecture.h"
#include "model/checkpoint/json.h"

namespace millrace {

namespace {

constexpr std::int64_t kMaxLayers = 4096;
constexpr std::int64_t kMaxSize = std::int64_t{1} << 31;
constexpr std::int64_t kMaxHeads = 65536;  // and components of a head

/// A number that must be the same in all layers.
std::int64_t uniform(GgufKeys& keys, std::string_view key, std::int64_t layers, std::int64_t fallback) {
  const std::vector<std::int64_t> values = keys.per_layer(key, layers);
  if (values.empty()) return fallback;
  if (std::any_of(values.begin(), values.end(), [&](std::int64_t v) { return v != values.front(); })) {
    keys.refuse(fail("{}: {} differs between layers, which this architecture cannot", keys.what(), key));
  }
  return values.front();
}

GgufModelSizes read_sizes(GgufKeys& keys, const GgufTensors& tensors) {
  GgufModelSizes sizes;
  // Layers for multi-token prediction stand behind those of the model and are not run.
  sizes.layers = keys.required_integer("block_count") - keys.integer("nextn_predict_layers").value_or(0);
  if (sizes.layers < 1 || sizes.layers > kMaxLayers) {
    keys.refuse(fail("{}: {} layers, expected 1 to {}", keys.what(), sizes.layers, kMaxLayers));
    sizes.layers = 1;
  }
  sizes.hidden = keys.required_integer("embedding_length");
  sizes.context = keys.required_integer("context_length");
  const std::vector<std::int64_t> heads = keys.per_layer("attention.head_count", sizes.layers);
  const std::vector<std::int64_t> kv_heads = keys.per_layer("attention.head_count_kv", sizes.layers);
  if (heads.empty()) keys.refuse(fail("{}: has no attention.head_count", keys.what()));
  sizes.heads = heads.empty() ? 1 : heads.front();
  sizes.kv_heads = kv_heads.empty() ? sizes.heads : kv_heads.front();
  if (sizes.heads < 1 || sizes.kv_heads < 1) {
    keys.refuse(
        fail("{}: {} heads and {} key-value heads, expected at least 1", keys.what(), sizes.heads, sizes.kv_heads));
    sizes.heads = sizes.kv_heads = 1;
  }
  sizes.head_dim =
      keys.has("attention.key_length") ? keys.required_integer("attention.key_length") : sizes.hidden / sizes.heads;
  if (const auto value_length = keys.integer("attention.value_length");
      value_length && *value_length != sizes.head_dim) {
    keys.refuse(fail("{}: values of {} and keys of {} components a head; only equal ones are supported", keys.what(),
                     *value_length, sizes.head_dim));
  }
  const auto embedding = tensors.find("token_embd.weight");
  sizes.vocab = embedding == tensors.end() ? keys.integer("vocab_size").value_or(0) : embedding->second->shape.front();
  const auto check = [&](std::initializer_list<std::int64_t> values, std::int64_t most) {
    for (const std::int64_t size : values) {
      if (size < 1 || size > most) {
        keys.refuse(fail("{}: a size of the model is {}, expected 1 to {}", keys.what(), size, most));
      }
    }
  };
  check({sizes.hidden, sizes.context}, kMaxSize);
  check({sizes.heads, sizes.kv_heads, sizes.head_dim}, kMaxHeads);
  return sizes;
}

/// rope_scaling of a config.json; null where nothing is scaled.
nlohmann::json rope_scaling(GgufKeys& keys, std::int64_t context) {
  const std::string type = keys.text("rope.scaling.type").value_or("none");
  if (type == "linear") return {{"rope_type", "linear"}, {"factor", keys.required_number("rope.scaling.factor")}};
  if (type == "yarn") {
    nlohmann::json scaling = {
        {"rope_type", "yarn"},
        {"factor", keys.required_number("rope.scaling.factor")},
        {"original_max_position_embeddings", keys.integer("rope.scaling.original_context_length").value_or(context)}};
    constexpr std::pair<const char*, const char*> kOptional[] = {
        {"rope.scaling.yarn_beta_fast", "beta_fast"},
        {"rope.scaling.yarn_beta_slow", "beta_slow"},
        {"rope.scaling.yarn_attn_factor", "attention_factor"},
    };
    for (const auto& [key, name] : kOptional) {
      if (const auto value = keys.number(key)) scaling[name] = *value;
    }
    return scaling;
  }
  // The oldest files say nothing but a factor.
  if (const auto factor = keys.number("rope.scale_linear"); type == "none" && factor && *factor != 1.0) {
    return {{"rope_type", "linear"}, {"factor", *factor}};
  }
  // longrope is nothing without its factors, which are tensors and belong to the architecture that has them.
  if (type != "none" && type != "longrope") {
    keys.refuse(fail("{}: rope.scaling.type is {}, expected none, linear, yarn or longrope", keys.what(), shown(type)));
  }
  return nullptr;
}

const char* torch_dtype(const GgufTensors& tensors) {
  const auto embedding = tensors.find("token_embd.weight");
  if (embedding == tensors.end()) return "float32";
  switch (embedding->second->format) {
    case QuantFormat::f16:
      return "float16";
    case QuantFormat::bf16:
      return "bfloat16";
    default:
      return "float32";
  }
}

}  // namespace

Result<nlohmann::json> gguf_config(const GgufArchitecture& architecture, const GgufMetadata& metadata,
                                   const GgufTensors& tensors, std::string_view what) {
  GgufKeys keys(metadata, std::string(architecture.name) + ".", what);
  GgufKeys tokenizer(metadata, "tokenizer.ggml.", what);
  const GgufModelSizes sizes = read_sizes(keys, tensors);
  MILLRACE_CHECK_OK(keys.status());

  nlohmann::json config = {
      {"hidden_size", sizes.hidden},
      {"num_hidden_layers", sizes.layers},
      {"num_attention_heads", sizes.heads},
      {"num_key_value_heads", sizes.kv_heads},
      {"head_dim", sizes.head_dim},
      {"max_position_embeddings", sizes.context},
      {"vocab_size", sizes.vocab},
      {"rms_norm_eps", keys.required_number("attention.layer_norm_rms_epsilon")},
      {"rope_theta", keys.number("rope.freq_base").value_or(10000.0)},
      {"rope_scaling", rope_scaling(keys, sizes.context)},
      {"tie_word_embeddings", !tensors.contains("output.weight")},
      {"hidden_act", "silu"},
      {"torch_dtype", torch_dtype(tensors)},
  };
  for (const auto& [key, name] : {std::pair{"bos_token_id", "bos_token_id"}, std::pair{"eos_token_id", "eos_token_id"},
                                  std::pair{"padding_token_id", "pad_token_id"}}) {
    const auto id = tokenizer.integer(key);
    config[name] = id ? nlohmann::json(*id) : nlohmann::json(nullptr);
  }
  if (keys.has("feed_forward_length")) {
    const std::vector<std::int64_t> widths = keys.per_layer("feed_forward_length", sizes.layers);
    config["intermediate_size"] = *std::min_element(widths.begin(), widths.end());
  }
  GgufTranslation model{keys, tensors, sizes, config};
  architecture.translate(model);
  if (!config.contains("num_global_key_value_heads")) {  // Gemma 4 alone has layers with different heads
    uniform(keys, "attention.head_count_kv", sizes.layers, sizes.kv_heads);
  }
  uniform(keys, "attention.head_count", sizes.layers, sizes.heads);
  if (!config.contains("use_double_wide_mlp")) uniform(keys, "feed_forward_length", sizes.layers, 0);
  MILLRACE_CHECK_OK(keys.status());
  MILLRACE_CHECK_OK(tokenizer.status());
  return config;
}

}  // namespace millrace
