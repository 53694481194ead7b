// A model is a value: what its decoder has, layer by layer. A part that is absent from the spec is skipped by the
// decoder. Families (model/families/) fill it from a checkpoint's config; nothing else in the program knows a family's
// name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace millrace {

enum class RopeScaling : std::uint8_t { none, linear, dynamic, llama3, yarn, longrope, proportional };

/// Rotary embedding of some layers. Field names follow transformers' rope_parameters.
struct RopeSpec {
  std::int32_t rotary_dim = 0;  // rotated components of a head; pairs (i, i + rotary_dim / 2)
  double theta = 10000.0;
  RopeScaling scaling = RopeScaling::none;
  double factor = 1.0;
  std::int64_t original_max_position = 0;  // original_max_position_embeddings, or max_position_embeddings where absent
  std::int64_t max_position = 0;           // max_position_embeddings
  double low_freq_factor = 1.0, high_freq_factor = 4.0;     // llama3
  double beta_fast = 32.0, beta_slow = 1.0;                 // yarn
  bool truncate = true;                                     // yarn: round the correction range
  double mscale = 0.0, mscale_all_dim = 0.0;                // yarn; 0: absent
  double attention_factor = 0.0;                            // yarn, longrope; 0: absent, computed as transformers does
  double partial_rotary_factor = 1.0;                       // proportional: share of the pairs that rotate at all
  std::vector<double> short_factor = {}, long_factor = {};  // longrope, [rotary_dim / 2]
  std::vector<float> freq_divisors = {};                    // GGUF rope_freqs: divides each frequency; empty: none

  bool operator==(const RopeSpec&) const = default;
};

/// Frequencies for one regime: angle of pair i at position t is t * inv_freq[i]; cos and sin are multiplied by `scale`.
struct RopeFrequencies {
  std::vector<float> inv_freq;  // [rotary_dim / 2]
  float scale = 1.0f;
};

/// Computes the frequencies in the regime of a sequence whose prompt has `admission_length` tokens (matters for dynamic
/// and longrope only), with transformers' arithmetic. Sources: Su et al. 2021 (RoPE); bloc97 2023 (dynamic NTK);
/// Peng et al. 2023 (YaRN); Ding et al. 2024 (LongRoPE); Meta 2024 (llama3).
RopeFrequencies rope_frequencies(const RopeSpec& spec, std::int64_t admission_length);

/// True where rope_frequencies depends on the admission length.
bool rope_depends_on_length(const RopeSpec& spec);

struct ModelConfig;

/// Names the frequencies that a sequence with a prompt of that length is computed with: sequences with different names
/// can't share keys. Empty for all lengths in most models.
std::string rope_regime(const ModelConfig& config, std::int64_t admission_length);

struct AttentionSpec {
  std::int32_t heads = 0, kv_heads = 0, head_dim = 0;
  std::int64_t window = 0;  // a token sees itself and window - 1 before it; 0: everything before it
  float scale = 0.0f;
  float softcap = 0.0f;
  std::int32_t rope = -1;  // index into ModelConfig::ropes; -1: no rotation (NoPE)
  NormScope qk_norm = NormScope::none;
  bool value_norm = false;
  bool value_is_key = false;
  bool sinks = false;
  std::int32_t kv_source = -1;  // reads the keys and values of that earlier layer; -1: has its own
  // Ministral 3: q of position t is multiplied by 1 + beta * ln(1 + floor(t / length)); 0: off
  float temperature_beta = 0.0f;
  std::int64_t temperature_length = 0;

  bool operator==(const AttentionSpec&) const = default;
};

struct MoeSpec {
  std::int32_t experts = 0;  // 0: the layer has no experts
  std::int32_t top_k = 0;
  std::int64_t intermediate = 0;
  ExpertWeighting weighting = ExpertWeighting::softmax_then_top_k_normalized;

  bool operator==(const MoeSpec&) const = default;
};

struct LayerSpec {
  AttentionSpec attention;
  std::int64_t intermediate = 0;  // of the dense feed-forward; 0: none (experts only)
  MoeSpec moe;                    // beside a dense part (Gemma 4) both run and their outputs are added
  Activation activation = Activation::silu;
  float clamp_limit = 0.0f;  // swiglu_clamp

  bool operator==(const LayerSpec&) const = default;
};

struct ModelConfig {
  std::string family;        // "llama"; for messages
  std::string architecture;  // "LlamaForCausalLM"
  std::int64_t hidden = 0;
  std::int64_t vocab = 0;  // rows of the embedding and of the head
  std::int64_t max_position = 0;
  float norm_eps = 1e-5f;
  float embedding_scale = 1.0f;
  float residual_scale = 1.0f;  // multiplies what attention and feed-forward add (Granite)
  float logit_scale = 1.0f;
  float logit_softcap = 0.0f;
  bool tied_head = false;
  std::int64_t per_layer_input = 0;  // Gemma 4: width of the per-layer embeddings; 0: none
  std::vector<RopeSpec> ropes;
  std::vector<LayerSpec> layers;
  std::vector<std::int32_t> eos_ids;  // from config and generation config

  bool operator==(const ModelConfig&) const = default;
};

}  // namespace millrace
