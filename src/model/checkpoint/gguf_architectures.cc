// The table of architectures, and what is special to each.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "model/checkpoint/gguf_architecture.h"

namespace millrace {

namespace {

using Stem = std::pair<std::string_view, std::string_view>;

void set_name(nlohmann::json& config, const char* architecture, const char* model_type) {
  config["architectures"] = {architecture};
  config["model_type"] = model_type;
}

/// Share of a head's components that is rotated, where the file says it.
void set_partial_rotary(GgufTranslation& model) {
  const auto rotated = model.keys.integer("rope.dimension_count");
  if (!rotated) return;
  model.config["partial_rotary_factor"] = static_cast<double>(*rotated) / static_cast<double>(model.sizes.head_dim);
}

void set_biases(GgufTranslation& model) {
  model.config["attention_bias"] = model.has_tensor("blk.0.attn_q.bias") || model.has_tensor("blk.0.attn_qkv.bias");
  model.config["mlp_bias"] = model.has_tensor("blk.0.ffn_down.bias");
}

void set_window(GgufTranslation& model) {
  const std::int64_t window = model.keys.integer("attention.sliding_window").value_or(0);
  model.config["sliding_window"] = window > 0 ? nlohmann::json(window) : nlohmann::json(nullptr);
}

void translate_llama(GgufTranslation& model) {
  const std::int64_t experts = model.keys.integer("expert_count").value_or(0);
  set_window(model);
  set_biases(model);
  if (experts > 0) {
    set_name(model.config, "MixtralForCausalLM", "mixtral");
    model.config["num_local_experts"] = experts;
    model.config["num_experts_per_tok"] = model.keys.required_integer("expert_used_count");
  } else if (!model.config["sliding_window"].is_null()) {
    set_name(model.config, "MistralForCausalLM", "mistral");
  } else {
    set_name(model.config, "LlamaForCausalLM", "llama");
    set_partial_rotary(model);
  }
}

constexpr Stem kLlamaStems[] = {{"ffn_gate_inp", "block_sparse_moe.gate"}};  // Mixtral

/// Mistral Small 3 as it is; Ministral 3 where queries are scaled by position.
void translate_mistral3(GgufTranslation& model) {
  set_window(model);
  const auto beta = model.keys.number("attention.temperature_scale");
  if (!beta) return set_name(model.config, "MistralForCausalLM", "mistral");
  set_name(model.config, "Ministral3ForCausalLM", "ministral3");
  nlohmann::json rope = model.config["rope_scaling"];
  if (rope.is_null()) rope = {{"rope_type", "default"}};
  if (const auto mscale = model.keys.number("rope.scaling.yarn_log_multiplier")) {
    rope["mscale"] = 1.0;  // the file does not have it; the runtime that it was made for takes 1
    rope["mscale_all_dim"] = *mscale;
  }
  rope["llama_4_scaling_beta"] = *beta;
  if (!rope.contains("original_max_position_embeddings")) {
    rope["original_max_position_embeddings"] =
        model.keys.integer("rope.scaling.original_context_length").value_or(model.sizes.context);
  }
  rope["rope_theta"] = model.config["rope_theta"];
  model.config.erase("rope_theta");
  model.config.erase("rope_scaling");
  model.config["rope_parameters"] = rope;
}

void translate_qwen2(GgufTranslation& model) {
  set_name(model.config, "Qwen2ForCausalLM", "qwen2");
  model.config["use_sliding_window"] = false;
}

void translate_qwen3(GgufTranslation& model) {
  set_name(model.config, "Qwen3ForCausalLM", "qwen3");
  set_biases(model);
  model.config["use_sliding_window"] = false;
}

void translate_qwen3moe(GgufTranslation& model) {
  set_name(model.config, "Qwen3MoeForCausalLM", "qwen3_moe");
  set_biases(model);
  nlohmann::json dense = nlohmann::json::array();
  for (std::int64_t layer = 0; layer < model.sizes.layers; ++layer) {
    if (model.has_tensor(fmt::format("blk.{}.ffn_gate.weight", layer))) dense.push_back(layer);
  }
  model.config.update({{"use_sliding_window", false},
                       {"num_experts", model.keys.required_integer("expert_count")},
                       {"num_experts_per_tok", model.keys.required_integer("expert_used_count")},
                       {"moe_intermediate_size", model.keys.required_integer("expert_feed_forward_length")},
                       {"norm_topk_prob", model.keys.flag("expert_weights_norm").value_or(true)},
                       {"decoder_sparse_step", 1},
                       {"mlp_only_layers", dense}});
}

constexpr Stem kGemmaStems[] = {
    {"post_attention_norm", "post_attention_layernorm"},
    {"ffn_norm", "pre_feedforward_layernorm"},
    {"post_ffw_norm", "post_feedforward_layernorm"},
};

/// The largest model of a generation divides scores by hidden / heads instead of by the head's size; the file does not
/// say so, and its own runtime tells it by the number of layers.
std::int64_t query_scalar(const GgufModelSizes& sizes, std::int64_t layers_of_largest) {
  return sizes.layers == layers_of_largest ? sizes.hidden / sizes.heads : sizes.head_dim;
}

nlohmann::json optional_number(const std::optional<double>& value) {
  return value ? nlohmann::json(*value) : nlohmann::json(nullptr);
}

void translate_gemma2(GgufTranslation& model) {
  set_name(model.config, "Gemma2ForCausalLM", "gemma2");
  model.config.update({
      {"hidden_activation", "gelu_pytorch_tanh"},
      {"hidden_act", "gelu_pytorch_tanh"},
      {"attention_bias", model.has_tensor("blk.0.attn_q.bias")},
      {"query_pre_attn_scalar", query_scalar(model.sizes, 46)},
      {"attn_logit_softcapping", model.keys.number("attn_logit_softcapping").value_or(50.0)},
      {"final_logit_softcapping", model.keys.number("final_logit_softcapping").value_or(30.0)},
      {"sliding_window", model.keys.integer("attention.sliding_window").value_or(4096)},
  });
}

/// layer_types from attention.sliding_window_pattern: a flag for each layer, or every how many-th layer attends fully.
nlohmann::json layer_types(GgufTranslation& model, std::int64_t default_period) {
  std::vector<std::int64_t> sliding;
  if (model.keys.has("attention.sliding_window_pattern")) {
    sliding = model.keys.per_layer("attention.sliding_window_pattern", model.sizes.layers);
  }
  const bool per_layer =
      std::all_of(sliding.begin(), sliding.end(), [](std::int64_t flag) { return flag <= 1; }) && !sliding.empty();
  const std::int64_t period = sliding.empty() ? default_period : std::max<std::int64_t>(sliding.front(), 1);
  nlohmann::json types = nlohmann::json::array();
  for (std::int64_t layer = 0; layer < model.sizes.layers; ++layer) {
    const bool slides = per_layer ? sliding[static_cast<std::size_t>(layer)] == 1 : (layer + 1) % period != 0;
    types.push_back(slides ? "sliding_attention" : "full_attention");
  }
  return types;
}

void translate_gemma3(GgufTranslation& model) {
  set_name(model.config, "Gemma3ForCausalLM", "gemma3_text");
  set_window(model);
  const bool windows = !model.config["sliding_window"].is_null();
  model.config.update({
      {"hidden_activation", "gelu_pytorch_tanh"},
      {"hidden_act", "gelu_pytorch_tanh"},
      {"attention_bias", model.has_tensor("blk.0.attn_q.bias")},
      {"query_pre_attn_scalar", query_scalar(model.sizes, 62)},
      {"attn_logit_softcapping", nullptr},
      {"final_logit_softcapping", optional_number(model.keys.number("final_logit_softcapping"))},
      {"rope_theta", model.keys.number("rope.freq_base").value_or(1e6)},
      {"rope_local_base_freq", model.keys.number("rope.freq_base_swa").value_or(10000.0)},
      {"layer_types", layer_types(model, windows ? 6 : 1)},
  });
  if (!windows) model.config["sliding_window"] = model.sizes.context;  // no layer uses it
}

constexpr Stem kGemma4Stems[] = {
    {"post_attention_norm", "post_attention_layernorm"},
    {"ffn_norm", "pre_feedforward_layernorm"},
    {"post_ffw_norm", "post_feedforward_layernorm"},
    {"pre_ffw_norm_2", "pre_feedforward_layernorm_2"},
    {"post_ffw_norm_1", "post_feedforward_layernorm_1"},
    {"post_ffw_norm_2", "post_feedforward_layernorm_2"},
    {"layer_output_scale.weight", "layer_scalar"},
    {"inp_gate", "per_layer_input_gate"},
    {"proj", "per_layer_projection"},
    {"post_norm", "post_per_layer_input_norm"},
    {"ffn_gate_inp", "router.proj"},
    {"ffn_gate_inp.scale", "router.scale"},
    {"ffn_down_exps.scale", "router.per_expert_scale"},
    {"ffn_gate_up_exps.weight", "experts.gate_up_proj"},
    {"ffn_down_exps.weight", "experts.down_proj"},
};

/// Which share of the pairs rotates in full attention: the file marks those that do not with a huge divisor.
double proportional_factor(const GgufTranslation& model) {
  const auto found = model.tensors.find("rope_freqs.weight");
  if (found == model.tensors.end() || found->second->format != QuantFormat::f32) return 1.0;
  const std::span<const std::byte> data = found->second->data;
  const std::size_t pairs = data.size() / sizeof(float);
  std::size_t rotating = 0;
  for (std::size_t i = 0; i < pairs; ++i) {
    float divisor = 0.0f;
    std::memcpy(&divisor, data.data() + i * sizeof(float), sizeof(float));
    if (divisor < 1e20f) ++rotating;
  }
  return static_cast<double>(rotating) / static_cast<double>(pairs);
}

void translate_gemma4(GgufTranslation& model) {
  set_name(model.config, "Gemma4ForCausalLM", "gemma4_text");
  GgufKeys& keys = model.keys;
  const nlohmann::json types = layer_types(model, 6);
  const auto first = [&](std::string_view type) { return std::find(types.begin(), types.end(), type) - types.begin(); };
  const auto full = first("full_attention");
  const auto sliding = first("sliding_attention");
  const auto layers = static_cast<std::ptrdiff_t>(model.sizes.layers);
  const std::vector<std::int64_t> kv_heads = keys.per_layer("attention.head_count_kv", model.sizes.layers);
  const std::vector<std::int64_t> widths = keys.per_layer("feed_forward_length", model.sizes.layers);
  const auto heads_of = [&](std::ptrdiff_t layer) -> nlohmann::json {
    if (kv_heads.empty() || layer >= layers) return nullptr;
    return kv_heads[static_cast<std::size_t>(layer)];
  };
  const bool double_wide =
      !widths.empty() && std::any_of(widths.begin(), widths.end(), [&](std::int64_t w) { return w != widths.front(); });
  const std::int64_t experts = keys.integer("expert_count").value_or(0);
  const std::int64_t per_layer = keys.integer("embedding_length_per_layer_input").value_or(0);
  const auto table = model.tensors.find("per_layer_token_embd.weight");
  const auto full_theta = keys.number("rope.freq_base").value_or(1e6);
  const auto sliding_theta = keys.number("rope.freq_base_swa").value_or(10000.0);
  const nlohmann::json global_kv = heads_of(full);

  set_window(model);
  if (model.config["sliding_window"].is_null()) model.config["sliding_window"] = model.sizes.context;
  model.config.erase("rope_theta");
  model.config.erase("rope_scaling");
  model.config.update({
      {"hidden_activation", "gelu_pytorch_tanh"},
      {"hidden_act", "gelu_pytorch_tanh"},
      {"attention_bias", model.has_tensor("blk.0.attn_q.bias")},
      {"attention_k_eq_v", full < layers && !model.has_tensor(fmt::format("blk.{}.attn_v.weight", full)) &&
                               model.has_tensor(fmt::format("blk.{}.attn_k.weight", full))},
      {"enable_moe_block", experts > 0},
      {"num_experts", experts > 0 ? nlohmann::json(experts) : nlohmann::json(nullptr)},
      {"top_k_experts", experts > 0 ? nlohmann::json(keys.required_integer("expert_used_count")) : nlohmann::json()},
      {"moe_intermediate_size",
       experts > 0 ? nlohmann::json(keys.required_integer("expert_feed_forward_length")) : nlohmann::json()},
      {"final_logit_softcapping", optional_number(keys.number("final_logit_softcapping"))},
      {"global_head_dim", model.sizes.head_dim},
      {"head_dim", keys.integer("attention.key_length_swa").value_or(model.sizes.head_dim)},
      {"hidden_size_per_layer_input", per_layer},
      {"vocab_size_per_layer_input", table == model.tensors.end() ? model.sizes.vocab : table->second->shape.front()},
      {"layer_types", types},
      {"num_key_value_heads", sliding < layers ? heads_of(sliding) : global_kv},
      {"num_global_key_value_heads", global_kv},
      {"num_kv_shared_layers", keys.integer("attention.shared_kv_layers").value_or(0)},
      {"use_double_wide_mlp", double_wide},
      {"rope_parameters",
       {{"full_attention",
         {{"rope_type", "proportional"},
          {"rope_theta", full_theta},
          {"partial_rotary_factor", proportional_factor(model)}}},
        {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", sliding_theta}}}}},
  });
  if (model.config["num_key_value_heads"].is_null()) model.config["num_key_value_heads"] = model.sizes.kv_heads;
}

constexpr Stem kFusedGateUpStems[] = {{"ffn_up", "mlp.gate_up_proj"}};

std::vector<double> rope_factors(GgufTranslation& model, std::string_view name) {
  const auto found = model.tensors.find(name);
  if (found == model.tensors.end()) return {};
  const GgufTensor& tensor = *found->second;
  const auto count = static_cast<std::int64_t>(tensor.data.size() / sizeof(float));
  if (tensor.format != QuantFormat::f32 || count > model.sizes.head_dim) {
    model.keys.refuse(fail("{}: {} must be F32 with one factor for each rotated pair", model.keys.what(), name));
    return {};
  }
  std::vector<double> factors;
  for (std::int64_t i = 0; i < count; ++i) {
    float value = 0.0f;
    std::memcpy(&value, tensor.data.data() + static_cast<std::size_t>(i) * sizeof(float), sizeof(float));
    if (!std::isfinite(value)) {
      model.keys.refuse(fail("{}: {} holds a factor that is not finite", model.keys.what(), name));
      value = 1.0f;
    }
    factors.push_back(shortest_decimal(value));
  }
  return factors;
}

void translate_phi3(GgufTranslation& model) {
  set_name(model.config, "Phi3ForCausalLM", "phi3");
  set_window(model);
  set_partial_rotary(model);
  const std::int64_t original =
      model.keys.integer("rope.scaling.original_context_length").value_or(model.sizes.context);
  model.config["original_max_position_embeddings"] = original;
  const std::vector<double> short_factor = rope_factors(model, "rope_factors_short.weight");
  const std::vector<double> long_factor = rope_factors(model, "rope_factors_long.weight");
  if (short_factor.empty() && long_factor.empty()) return;
  nlohmann::json scaling = {{"rope_type", "longrope"}, {"short_factor", short_factor}, {"long_factor", long_factor}};
  // The file repeats what follows from the two lengths, rounded to float32; only something else is worth saying.
  if (const auto factor = model.keys.number("rope.scaling.attn_factor"); factor && original > 1) {
    const double scale = static_cast<double>(model.sizes.context) / static_cast<double>(original);
    const double usual = scale > 1.0 ? std::sqrt(1.0 + std::log(scale) / std::log(static_cast<double>(original))) : 1.0;
    if (std::abs(*factor - usual) > 1e-5 * usual) scaling["attention_factor"] = *factor;
  }
  model.config["rope_scaling"] = scaling;
}

constexpr Stem kOlmoStems[] = {
    {"post_attention_norm", "post_attention_layernorm"},
    {"post_ffw_norm", "post_feedforward_layernorm"},
};

/// OLMo 3 goes by the same name, with windows.
void translate_olmo2(GgufTranslation& model) {
  set_biases(model);
  if (model.keys.integer("attention.sliding_window").value_or(0) == 0) {
    return set_name(model.config, "Olmo2ForCausalLM", "olmo2");
  }
  set_name(model.config, "Olmo3ForCausalLM", "olmo3");
  set_window(model);
  model.config["layer_types"] = layer_types(model, 4);
}

void translate_smollm3(GgufTranslation& model) {
  set_name(model.config, "SmolLM3ForCausalLM", "smollm3");
  set_biases(model);
  model.config["no_rope_layer_interval"] = 4;  // not in the file; so it is in all published models
  model.config["use_sliding_window"] = false;
}

constexpr Stem kGlm4Stems[] = {
    {"post_attention_norm", "post_self_attn_layernorm"},
    {"post_ffw_norm", "post_mlp_layernorm"},
    {"ffn_up", "mlp.gate_up_proj"},
};

void translate_glm4(GgufTranslation& model) {
  set_name(model.config, "Glm4ForCausalLM", "glm4");
  set_biases(model);
  set_partial_rotary(model);
}

void translate_chatglm(GgufTranslation& model) {
  set_name(model.config, "GlmForCausalLM", "glm");
  set_biases(model);
  set_partial_rotary(model);
}

void translate_granite(GgufTranslation& model) {
  set_name(model.config, "GraniteForCausalLM", "granite");
  set_biases(model);
  // What the file leaves out is not scaled, except attention, which then has the usual scale; transformers would
  // take 1.
  model.config.update({
      {"attention_multiplier",
       model.keys.number("attention.scale").value_or(1.0 / std::sqrt(static_cast<double>(model.sizes.head_dim)))},
      {"embedding_multiplier", model.keys.number("embedding_scale").value_or(1.0)},
      {"residual_multiplier", model.keys.number("residual_scale").value_or(1.0)},
      {"logits_scaling", model.keys.number("logit_scale").value_or(1.0)},
  });
}

constexpr Stem kGptOssStems[] = {
    {"post_attention_norm", "post_attention_layernorm"},
    {"attn_sinks.weight", "self_attn.sinks"},
    {"ffn_gate_inp", "mlp.router"},
};

void translate_gpt_oss(GgufTranslation& model) {
  set_name(model.config, "GptOssForCausalLM", "gpt_oss");
  set_biases(model);
  // The limit, the pattern and unrounded YaRN bounds are not in the file: they are the same in all published models.
  if (!model.config["rope_scaling"].is_null()) model.config["rope_scaling"]["truncate"] = false;
  model.config.update({
      {"num_local_experts", model.keys.required_integer("expert_count")},
      {"num_experts_per_tok", model.keys.required_integer("expert_used_count")},
      {"intermediate_size", model.keys.required_integer("expert_feed_forward_length")},
      {"sliding_window", model.keys.required_integer("attention.sliding_window")},
      {"layer_types", layer_types(model, 2)},
      {"swiglu_limit", 7.0},
  });
}

constexpr GgufArchitecture kArchitectures[] = {
    {.name = "llama", .permuted = true, .stems = kLlamaStems, .translate = translate_llama},
    {.name = "mistral3", .permuted = true, .stems = {}, .translate = translate_mistral3},
    {.name = "qwen2", .stems = {}, .translate = translate_qwen2},
    {.name = "qwen3", .stems = {}, .translate = translate_qwen3},
    {.name = "qwen3moe", .stems = {}, .translate = translate_qwen3moe},
    {.name = "gemma2", .norms_include_one = true, .stems = kGemmaStems, .translate = translate_gemma2},
    {.name = "gemma3", .norms_include_one = true, .stems = kGemmaStems, .translate = translate_gemma3},
    {.name = "gemma4", .stems = kGemma4Stems, .translate = translate_gemma4},
    {.name = "phi3", .stems = kFusedGateUpStems, .translate = translate_phi3},
    {.name = "olmo2", .stems = kOlmoStems, .translate = translate_olmo2},
    {.name = "smollm3", .permuted = true, .stems = {}, .translate = translate_smollm3},
    {.name = "glm4", .stems = kGlm4Stems, .translate = translate_glm4},
    {.name = "chatglm", .stems = kFusedGateUpStems, .translate = translate_chatglm},
    {.name = "granite", .permuted = true, .stems = {}, .translate = translate_granite},
    {.name = "gpt-oss", .stems = kGptOssStems, .translate = translate_gpt_oss},
};

}  // namespace

const GgufArchitecture* find_gguf_architecture(std::string_view name) {
  const auto* found = std::find_if(std::begin(kArchitectures), std::end(kArchitectures),
                                   [&](const GgufArchitecture& row) { return row.name == name; });
  return found == std::end(kArchitectures) ? nullptr : found;
}

std::string supported_gguf_architectures() {
  std::string names;
  for (const GgufArchitecture& row : kArchitectures) {
    names += names.empty() ? "" : ", ";
    names += row.name;
  }
  return names;
}

}  // namespace millrace
