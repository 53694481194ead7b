// The only forward pass there is. It reads a ModelConfig layer by layer and calls the backend's fused operations; a
// part that a layer's spec lacks is skipped. It sees nothing of requests but the ForwardBatch.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "backend/backend.h"
#include "core/result.h"
#include "kv/page_layout.h"
#include "model/config.h"
#include "model/weights.h"
#include "recipe/attention_policy.h"

namespace millrace {

/// What rows select in layer `layer`: nothing in the first ones, and nothing within a window.
AttentionPolicy layer_policy(const ModelConfig& config, const AttentionPolicy& policy, std::size_t layer);

/// The KV shapes of a model's layers, for make_page_layout.
std::vector<KvShape> kv_shapes(const ModelConfig& config, const AttentionPolicy& policy = {});

class Decoder {
 public:
  struct Limits {
    std::int64_t max_rows = 512;       // rows of a ForwardBatch
    std::int64_t max_logit_rows = 64;  // rows that want logits
  };

  /// Bytes of activation memory that create() will allocate.
  static std::size_t workspace_bytes(const ModelConfig& config, const Limits& limits);

  /// `backend` must outlive the decoder. `policy`: what rows read, where not everything; pages must have the bounds
  /// that kv_shapes() asks for. Error: no memory for the activations.
  static Result<std::unique_ptr<Decoder>> create(ModelConfig config, ModelWeights weights, Backend& backend,
                                                 Limits limits, const AttentionPolicy& policy = {});

  /// Runs one step: stores keys and values of every row, returns the logits of batch.logit_rows, [logit_rows, vocab]
  /// f32, device memory that stays valid until the next call. `kv` has one entry a layer. Batch sizes must be within
  /// the limits.
  const Buffer& forward(const ForwardBatch& batch, std::span<const KvLayer> kv);

  /// After a forward() of a batch that wants_hidden: the final hidden states (after the last norm) of all its rows,
  /// [rows, hidden] f32, device memory that stays valid until the next call.
  [[nodiscard]] const Buffer& hidden() const { return x_; }

  [[nodiscard]] const ModelConfig& config() const { return config_; }
  [[nodiscard]] const Limits& limits() const { return limits_; }
  /// Of its layers together: what some of them select, and what is kept; nothing where none does.
  [[nodiscard]] const AttentionPolicy& policy() const { return policy_; }

  /// Whether rows of answers leave out inputs of linear layers.
  [[nodiscard]] bool skips_inputs() const;

 private:
  Decoder(ModelConfig config, ModelWeights weights, Backend& backend, Limits limits);

  Status allocate();
  void prepare_rotations(const ForwardBatch& batch);
  void prepare_turns(const ForwardBatch& batch);
  void prepare_per_layer_inputs(const ForwardBatch& batch);
  void attention_block(const ForwardBatch& batch, std::size_t layer, const KvLayer& kv, const float* x);
  const float* feed_forward_block(std::int64_t rows, std::size_t layer, const float* x);
  void per_layer_block(std::int64_t rows, std::size_t layer);
  void head(const ForwardBatch& batch);

  ModelConfig config_;
  ModelWeights weights_;
  Backend* backend_;
  Limits limits_;
  AttentionPolicy policy_;
  std::vector<AttentionPolicy> layer_policies_;

  std::vector<RopeFrequencies> frequencies_;  // one a rope spec; those that depend on the length are made anew

  // Host side of what prepare_rotations uploads.
  std::vector<float> host_cos_, host_sin_, host_q_scale_;
  // What pages that have moved turn queries by, one a rope spec. Where the rotation is the same for all sequences it
  // stays known: most of it is the same for all rows of a page, and the next page's.
  struct Turns {
    QueryTurns view;
    std::vector<float> cos, sin;
    std::vector<std::int32_t> rows;
    std::unordered_map<std::int64_t, std::int32_t> row_of;  // by how many positions
    std::int32_t add(const RopeFrequencies& frequencies, std::int64_t by);
  };
  std::vector<Turns> turns_;

  // Activations, allocated once. h_ is the residual stream; x_ what a block reads; delta_ what it adds.
  Buffer h_, x_, delta_, qkv_, attended_, scratch_, gathered_, logits_;
  std::vector<Buffer> cos_, sin_;  // one a rope spec: [max_rows, rotary_dim / 2]
  std::vector<Buffer> q_scale_;    // one a layer with attention temperature: [max_rows]
  Buffer router_x_, moe_out_;      // Gemma 4: dense part and experts side by side
  Buffer per_layer_, per_layer_scratch_;
};

}  // namespace millrace
