// What a model's activations were like on a text, as `millrace calibrate` writes it and recipes refer to it. Pure.
//
//   {"millrace_activations": 1, "model": "0123456789abcdef", "tokens": 65536,
//    "inputs": [{"layers": ["model.layers.0.self_attn.q_proj", …], "magnitudes": [257 numbers]}, …],
//    "gates": [{"layers": ["model.layers.0.mlp.down_proj"], "magnitudes": [257 numbers]}, …],
//    "attention": {…}, "kv": {…}}      (recipe/attention_profile.h; either may be absent)
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "recipe/attention_profile.h"

namespace millrace {

/// Number i is the magnitude that a share i / (size - 1) of all values does not exceed; ascending, at least two.
using MagnitudeQuantiles = std::vector<float>;
inline constexpr std::size_t kMagnitudeQuantiles = 257;

/// The magnitude that a share `share` (0 to 1) of the values does not exceed, linear between the quantiles.
float magnitude_at(const MagnitudeQuantiles& quantiles, double share);

struct ActivationProfile {
  struct Entry {
    std::vector<std::string> layers;  // that read the same inputs; of a gate the down projection behind it
    MagnitudeQuantiles magnitudes;
  };

  std::string model;        // fingerprint of the model's files (runtime/model_fingerprint.h)
  std::int64_t tokens = 0;  // of text that were read
  std::vector<Entry> inputs, gates;
  std::optional<AttentionProfile> attention = {};
  std::optional<KvProfile> kv = {};

  /// Null where the profile has none of that layer.
  [[nodiscard]] const MagnitudeQuantiles* inputs_of(std::string_view layer) const;
  [[nodiscard]] const MagnitudeQuantiles* gate_of(std::string_view layer) const;
};

/// Errors name `name` and the place: not JSON, another version, a key that is not known, numbers that
/// are no quantiles, and those of the sections.
Result<ActivationProfile> parse_activation_profile(std::string_view text, const std::string& name);
/// The file's text.
std::string activation_profile_text(const ActivationProfile& profile);

}  // namespace millrace
