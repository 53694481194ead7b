#include "model/weight_loader.h"

#include <cmath>
#include <utility>

namespace millrace {

Result<std::uint64_t> WeightLoader::measure() {
  MILLRACE_TRY(const ModelWeights nothing, build());
  return builder_.bytes();
}

Result<ModelWeights> WeightLoader::load(std::uint64_t total,
                                        const std::function<void(std::uint64_t, std::uint64_t)>& progress) {
  builder_.start_packing(total, progress);
  return build();
}

std::string WeightLoader::in_layer(std::size_t index, const std::string& name) {
  return fmt::format("model.layers.{}.{}", index, name);
}

Result<Vector> WeightLoader::norm(const std::string& name, std::int64_t size) {
  if (name.empty()) return Vector();
  MILLRACE_TRY(std::vector<float> values, builder_.floats(name, size));
  if (names_->norms_minus_one && !builder_.source().norms_include_one()) {
    for (float& value : values) value += 1.0f;
  }
  return builder_.vector(values, size);
}

Result<Vector> WeightLoader::layer_norm(std::size_t index, const std::string& name, std::int64_t size) {
  return name.empty() ? Vector() : norm(in_layer(index, name), size);
}

Result<Matrix> WeightLoader::plain_matrix(const std::string& name, std::int64_t rows, std::int64_t cols,
                                          const std::string& linear) {
  const std::vector<std::string> names = linear.empty() ? std::vector<std::string>() : std::vector{linear};
  std::vector<SourceTensor> tensors(1);
  MILLRACE_TRY(tensors.front(), builder_.tensor(name, {rows, cols}));
  MILLRACE_TRY(Matrix matrix, builder_.matrix({{WeightBuilder::piece(tensors.front(), rows, cols, {})}}, names));
  builder_.release(tensors);
  return matrix;
}

Result<WeightLoader::Gathered> WeightLoader::gather(std::size_t index, const std::vector<Part>& parts,
                                                    std::int64_t cols, bool bias, bool may_round) const {
  Gathered all;
  all.tensors.reserve(parts.size());
  for (const Part& part : parts) {
    MILLRACE_TRY(SourceTensor tensor, builder_.tensor(in_layer(index, part.name + ".weight"), {part.rows, cols}));
    all.tensors.push_back(std::move(tensor));
    all.source.pieces.push_back(WeightBuilder::piece(all.tensors.back(), part.rows, cols, part.row_order));
    if (may_round) all.names.push_back(in_layer(index, part.name));
    if (!bias) continue;
    MILLRACE_TRY(const std::vector<float> values, builder_.floats(in_layer(index, part.name + ".bias"), part.rows));
    for (std::size_t i = 0; i < values.size(); ++i) {
      all.biases.push_back(values[part.row_order.empty() ? i : static_cast<std::size_t>(part.row_order[i])]);
    }
  }
  return all;
}

Result<LinearWeights> WeightLoader::linear(std::size_t index, const std::vector<Part>& parts, std::int64_t cols,
                                           bool bias, bool may_round) {
  LinearWeights weights;
  MILLRACE_TRY(const Gathered all, gather(index, parts, cols, bias, may_round));
  MILLRACE_TRY(weights.weight, builder_.matrix(all.source, all.names));
  builder_.release(all.tensors);
  if (bias) {
    MILLRACE_TRY(weights.bias, builder_.vector(all.biases, all.source.rows()));
  }
  return weights;
}

bool WeightLoader::has_own_head() {
  if (!own_head_) {
    own_head_ = !config_->tied_head || builder_.source().differ("lm_head.weight", "model.embed_tokens.weight");
  }
  return *own_head_;
}

Result<ModelWeights> WeightLoader::build() {
  ModelWeights weights;
  const std::int64_t hidden = config_->hidden;
  MILLRACE_TRY(weights.embedding,
               plain_matrix("model.embed_tokens.weight", config_->vocab, hidden, has_own_head() ? "" : "lm_head"));
  // The largest matrices first: while one is packed, its file pages are resident too, and that must not be when nearly
  // everything else is in memory already.
  if (has_own_head()) {
    MILLRACE_TRY(weights.head, plain_matrix("lm_head.weight", config_->vocab, hidden, "lm_head"));
  }
  if (config_->per_layer_input > 0) MILLRACE_CHECK_OK(per_layer_inputs(weights));
  for (std::size_t l = 0; l < config_->layers.size(); ++l) {
    MILLRACE_TRY(LayerWeights layer_weights, layer(l));
    weights.layers.push_back(std::move(layer_weights));
  }
  MILLRACE_TRY(weights.final_norm, norm("model.norm.weight", hidden));
  return weights;
}

Result<LayerWeights> WeightLoader::layer(std::size_t index) {
  LayerWeights weights;
  const std::int64_t hidden = config_->hidden;
  MILLRACE_TRY(weights.attention_norm, layer_norm(index, names_->attention_norm, hidden));
  MILLRACE_TRY(weights.attention_post_norm, layer_norm(index, names_->attention_post_norm, hidden));
  MILLRACE_TRY(weights.ffn_norm, layer_norm(index, names_->ffn_norm, hidden));
  MILLRACE_TRY(weights.ffn_post_norm, layer_norm(index, names_->ffn_post_norm, hidden));
  MILLRACE_CHECK_OK(attention(index, weights));
  if (config_->layers[index].intermediate > 0) MILLRACE_CHECK_OK(feed_forward(index, weights));
  if (config_->layers[index].moe.experts > 0) MILLRACE_CHECK_OK(experts(index, weights));
  if (names_->layer_scalar || names_->per_layer_inputs) MILLRACE_CHECK_OK(gemma4_parts(index, weights));
  return weights;
}

Status WeightLoader::attention(std::size_t index, LayerWeights& weights) {
  const AttentionSpec& spec = config_->layers[index].attention;
  const std::int64_t q = std::int64_t{spec.heads} * spec.head_dim;
  const std::int64_t kv = std::int64_t{spec.kv_heads} * spec.head_dim;
  const bool has_kv = spec.kv_source < 0;
  std::vector<Part> parts;
  if (names_->fused_qkv) {
    parts.push_back({"self_attn.qkv_proj", q + 2 * kv, {}});
  } else {
    const bool reorder = names_->interleaved_rope && spec.rope >= 0;
    const std::int32_t rotary = reorder ? config_->ropes[static_cast<std::size_t>(spec.rope)].rotary_dim : 0;
    parts.push_back({"self_attn.q_proj", q, half_split_order(spec.heads, spec.head_dim, rotary)});
    if (has_kv) parts.push_back({"self_attn.k_proj", kv, half_split_order(spec.kv_heads, spec.head_dim, rotary)});
    if (has_kv && !spec.value_is_key) parts.push_back({"self_attn.v_proj", kv, {}});
  }
  MILLRACE_TRY(weights.qkv, linear(index, parts, config_->hidden, names_->qkv_bias));
  MILLRACE_TRY(weights.out, linear(index, {{"self_attn.o_proj", config_->hidden, {}}}, q, names_->out_bias));
  if (spec.qk_norm != NormScope::none) {
    const bool whole = spec.qk_norm == NormScope::all_heads;
    MILLRACE_TRY(weights.q_norm, layer_norm(index, "self_attn.q_norm.weight", whole ? q : spec.head_dim));
    if (has_kv) {
      MILLRACE_TRY(weights.k_norm, layer_norm(index, "self_attn.k_norm.weight", whole ? kv : spec.head_dim));
    }
  }
  if (spec.sinks) {
    MILLRACE_TRY(const std::vector<float> sinks, builder_.floats(in_layer(index, "self_attn.sinks"), spec.heads));
    MILLRACE_TRY(weights.sinks, builder_.vector(sinks, spec.heads));
  }
  return Ok{};
}

Status WeightLoader::feed_forward(std::size_t index, LayerWeights& weights) {
  const std::int64_t width = config_->layers[index].intermediate;
  std::vector<Part> parts;
  if (names_->fused_gate_up) {
    parts.push_back({"mlp.gate_up_proj", 2 * width, {}});
  } else {
    parts.push_back({"mlp.gate_proj", width, {}});
    parts.push_back({"mlp.up_proj", width, {}});
  }
  const std::vector<Part> down{{"mlp.down_proj", config_->hidden, {}}};
  const std::optional<NeuronChoice> choice = choices_ ? choices_(index) : std::nullopt;
  if (!choice) {
    MILLRACE_TRY(weights.ffn.gate_up, linear(index, parts, config_->hidden, names_->ffn_bias));
    MILLRACE_TRY(weights.ffn.down, linear(index, down, width, names_->ffn_bias));
    return Ok{};
  }
  MILLRACE_TRY(const Gathered up, gather(index, parts, config_->hidden, names_->ffn_bias, true));
  MILLRACE_TRY(const Gathered back, gather(index, down, width, names_->ffn_bias, true));
  MILLRACE_TRY(weights.ffn.neurons, builder_.neurons(up.source, up.names, back.source, back.names, *choice));
  builder_.release(up.tensors);
  builder_.release(back.tensors);
  if (names_->ffn_bias) {
    MILLRACE_TRY(weights.ffn.gate_up.bias, builder_.vector(up.biases, 2 * width));
    MILLRACE_TRY(weights.ffn.down.bias, builder_.vector(back.biases, config_->hidden));
  }
  return Ok{};
}

Status WeightLoader::experts(std::size_t index, LayerWeights& weights) {
  const LayerSpec& spec = config_->layers[index];
  const ExpertNames& names = names_->experts;
  std::string router = names.router.front();
  for (const std::string& name : names.router) {
    if (builder_.source().has(in_layer(index, name + ".weight"))) {
      router = name;
      break;
    }
  }
  MILLRACE_TRY(weights.router,
               linear(index, {{router, spec.moe.experts, {}}}, config_->hidden, names.router_bias, false));
  MILLRACE_TRY(weights.experts, load_experts(builder_, *config_, spec, names, in_layer(index, "")));
  return Ok{};
}

Status WeightLoader::gemma4_parts(std::size_t index, LayerWeights& weights) {
  const std::int64_t hidden = config_->hidden;
  if (names_->layer_scalar) {
    MILLRACE_TRY(const std::vector<float> scalar, builder_.floats(in_layer(index, "layer_scalar"), 1));
    if (!scalar.empty()) weights.layer_scale = scalar.front();
  }
  if (config_->per_layer_input > 0) {
    const std::int64_t width = config_->per_layer_input;
    MILLRACE_TRY(weights.per_layer_gate, plain_matrix(in_layer(index, "per_layer_input_gate.weight"), width, hidden));
    MILLRACE_TRY(weights.per_layer_projection,
                 plain_matrix(in_layer(index, "per_layer_projection.weight"), hidden, width));
    MILLRACE_TRY(weights.per_layer_post_norm, layer_norm(index, "post_per_layer_input_norm.weight", hidden));
  }
  const LayerSpec& spec = config_->layers[index];
  if (spec.intermediate == 0 || spec.moe.experts == 0) return Ok{};
  // The router's norm has no weight of its own; its scale and 1 / sqrt(hidden) take that place.
  MILLRACE_TRY(std::vector<float> scale, builder_.floats(in_layer(index, "router.scale"), hidden));
  for (float& value : scale) value *= static_cast<float>(1.0 / std::sqrt(static_cast<double>(hidden)));
  MILLRACE_TRY(weights.router_norm, builder_.vector(scale, hidden));
  MILLRACE_TRY(const std::vector<float> expert_scale,
               builder_.floats(in_layer(index, "router.per_expert_scale"), spec.moe.experts));
  MILLRACE_TRY(weights.expert_scale, builder_.vector(expert_scale, spec.moe.experts));
  MILLRACE_TRY(weights.dense_post_norm, layer_norm(index, "post_feedforward_layernorm_1.weight", hidden));
  MILLRACE_TRY(weights.moe_norm, layer_norm(index, "pre_feedforward_layernorm_2.weight", hidden));
  MILLRACE_TRY(weights.moe_post_norm, layer_norm(index, "post_feedforward_layernorm_2.weight", hidden));
  return Ok{};
}

Status WeightLoader::per_layer_inputs(ModelWeights& weights) {
  const std::int64_t width = config_->per_layer_input * static_cast<std::int64_t>(config_->layers.size());
  MILLRACE_TRY(weights.per_layer_embedding, plain_matrix("model.embed_tokens_per_layer.weight", config_->vocab, width));
  MILLRACE_TRY(weights.per_layer_model_projection,
               plain_matrix("model.per_layer_model_projection.weight", width, config_->hidden));
  MILLRACE_TRY(weights.per_layer_norm, norm("model.per_layer_projection_norm.weight", config_->per_layer_input));
  return Ok{};
}

}  // namespace millrace
