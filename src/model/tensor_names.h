// How a family's checkpoints name and lay out their tensors. Names of a layer's tensors are relative to
// "model.layers.N."; an empty name means that the model has no such tensor.
#pragma once

#include <string>
#include <vector>

namespace millrace {

/// Where a layer's experts are in a checkpoint. The loader takes the first form whose tensors are there.
struct ExpertNames {
  std::vector<std::string> router{"mlp.gate"};  // + ".weight", and ".bias" with expert_bias
  // [experts, 2 * intermediate, hidden] and [experts, hidden, intermediate], as transformers 5 holds them; gpt-oss has
  // the last two dimensions swapped and gate and up interleaved.
  std::string gate_up{"mlp.experts.gate_up_proj"}, down{"mlp.experts.down_proj"};
  bool transposed = false, interleaved = false;
  // One tensor an expert, most published checkpoints: PREFIX.E.GATE.weight.
  std::string each{"mlp.experts"}, each_gate{"gate_proj"}, each_up{"up_proj"}, each_down{"down_proj"};
  // One tensor a projection, GGUF: [experts, rows, cols], PREFIX.gate_proj.weight.
  std::string stacked{"mlp.experts"};
  bool router_bias = false, expert_bias = false;
};

struct TensorNames {
  std::string attention_norm{"input_layernorm.weight"};
  std::string attention_post_norm;
  std::string ffn_norm{"post_attention_layernorm.weight"};
  std::string ffn_post_norm;
  bool norms_minus_one = false;  // norm weights are stored minus one (Gemma 2, 3)

  bool fused_qkv = false;  // self_attn.qkv_proj: rows q, k, v
  bool qkv_bias = false, out_bias = false;
  bool interleaved_rope = false;  // rotary pairs are neighbours instead of half a head apart
  bool fused_gate_up = false;     // mlp.gate_up_proj: rows gate, up
  bool ffn_bias = false;
  ExpertNames experts;

  // Gemma 4 only
  bool per_layer_inputs = false, layer_scalar = false;
};

}  // namespace millrace
