// Tensor names.
#include <algorithm>

#include "model/checkpoint/gguf_architecture.h"

namespace millrace {

namespace {

using Pair = std::pair<std::string_view, std::string_view>;

constexpr Pair kModelStems[] = {
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
    {"per_layer_token_embd", "model.embed_tokens_per_layer"},  // these three: Gemma 4
    {"per_layer_model_proj", "model.per_layer_model_projection"},
    {"per_layer_proj_norm", "model.per_layer_projection_norm"},
};

constexpr Pair kBlockStems[] = {
    {"attn_norm", "input_layernorm"},
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_qkv", "self_attn.qkv_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},
    {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
    {"ffn_gate_inp", "mlp.gate"},
    {"ffn_gate_exps", "mlp.experts.gate_proj"},
    {"ffn_up_exps", "mlp.experts.up_proj"},
    {"ffn_down_exps", "mlp.experts.down_proj"},
};

std::string_view lookup(std::span<const Pair> table, std::string_view key) {
  const auto found = std::find_if(table.begin(), table.end(), [&](const Pair& row) { return row.first == key; });
  return found == table.end() ? std::string_view() : found->second;
}

bool is_number(std::string_view text) {
  return !text.empty() && text.size() < 7 &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

/// Files of the first Mixtral days have a tensor for each expert: ffn_gate.3.
std::string expert_stem(std::string_view stem) {
  constexpr Pair kProjections[] = {{"ffn_gate", "w1"}, {"ffn_down", "w2"}, {"ffn_up", "w3"}};
  const std::size_t dot = stem.find('.');
  if (dot == std::string_view::npos || !is_number(stem.substr(dot + 1))) return "";
  const std::string_view projection = lookup(kProjections, stem.substr(0, dot));
  if (projection.empty()) return "";
  return fmt::format("block_sparse_moe.experts.{}.{}", stem.substr(dot + 1), projection);
}

}  // namespace

std::string gguf_tensor_name(const GgufArchitecture& architecture, std::string_view name) {
  const std::size_t last = name.rfind('.');
  if (last == std::string_view::npos) return std::string(name);
  const std::string_view suffix = name.substr(last);  // ".weight", ".bias"
  if (!name.starts_with("blk.")) {
    const std::string_view stem = lookup(kModelStems, name.substr(0, last));
    return stem.empty() ? std::string(name) : std::string(stem) + std::string(suffix);
  }
  const std::size_t dot = name.find('.', 4);
  const std::string_view layer = name.substr(4, dot - 4);
  if (dot >= last || !is_number(layer)) return std::string(name);
  const std::string prefix = fmt::format("model.layers.{}.", layer);
  // A row for the whole rest of the name wins: it can change the suffix.
  if (const std::string_view whole = lookup(architecture.stems, name.substr(dot + 1)); !whole.empty()) {
    return prefix + std::string(whole);
  }
  const std::string_view stem = name.substr(dot + 1, last - dot - 1);
  std::string translated(lookup(architecture.stems, stem));
  if (translated.empty()) translated = lookup(kBlockStems, stem);
  if (translated.empty()) translated = expert_stem(stem);
  if (translated.empty() || (suffix != ".weight" && suffix != ".bias")) return std::string(name);
  return prefix + translated + std::string(suffix);
}

}  // namespace millrace
