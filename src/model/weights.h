// The weights of a decoder, packed for a backend. Everything that a spec can lack is nullable.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "core/result.h"
#include "model/config.h"

namespace millrace {

using Matrix = std::unique_ptr<PackedMatrix>;
using Neurons = std::unique_ptr<PackedNeurons>;

/// A vector of floats on the device; empty (null) where the model has none.
struct Vector {
  Buffer buffer;
  [[nodiscard]] const float* get() const { return buffer.floats(); }
};

struct LinearWeights {
  Matrix weight;
  Vector bias;
  [[nodiscard]] Linear view() const { return {weight.get(), bias.get()}; }
};

struct FfnWeights {
  LinearWeights gate_up, down;
  Neurons neurons;  // the weights, where rows of answers choose; those above then have biases alone
};

struct LayerWeights {
  Vector attention_norm, attention_post_norm;  // before attention; of its output before it is added
  LinearWeights qkv;                           // rows q, k, v as far as the spec has them
  Vector q_norm, k_norm, sinks;
  LinearWeights out;

  Vector ffn_norm, ffn_post_norm;
  FfnWeights ffn;

  LinearWeights router;
  std::vector<FfnWeights> experts;
  // Gemma 4, where a dense part and experts run side by side
  Vector router_norm, expert_scale, dense_post_norm, moe_norm, moe_post_norm;

  // Gemma 4 per-layer embeddings
  Matrix per_layer_gate, per_layer_projection;
  Vector per_layer_post_norm;
  float layer_scale = 1.0f;
};

struct ModelWeights {
  Matrix embedding;  // [vocab, hidden]; also the head where it is tied
  Matrix head;       // [vocab, hidden], or null where tied
  Vector final_norm;
  std::vector<LayerWeights> layers;
  // Gemma 4: table [vocab, layers * per_layer_input], projection [layers * per_layer_input, hidden], norm
  // [per_layer_input]
  Matrix per_layer_embedding, per_layer_model_projection;
  Vector per_layer_norm;
};

}  // namespace millrace
