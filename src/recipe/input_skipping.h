// Which inputs of linear layers count as zero in rows of answers, as a recipe says it (docs/sparsity.md).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "recipe/activation_profile.h"

namespace millrace {

/// Inputs that are kept by lot, whatever they are: what thresholds are to be better than.
struct DrawnInputs {
  double density = 1.0;   // the share that is kept, of each row anew
  std::uint64_t key = 0;  // of what reads the inputs

  /// Whether the row of position `position` keeps input `input`. By Philox, so that neither the batch nor a second run
  /// makes a difference.
  [[nodiscard]] bool keeps(std::int64_t position, std::int64_t input) const;
  bool operator==(const DrawnInputs&) const = default;
};

/// What rows of answers leave out of the inputs of a linear layer. Absent parts leave out nothing.
struct InputSkip {
  std::optional<float> threshold;         // an input x counts as zero where |x| <= threshold
  std::optional<float> gate_threshold;    // of a down projection: an input counts as zero where |act(gate)| <= this
  std::optional<DrawnInputs> drawn = {};  // instead of both: an input counts as zero where this does not keep it

  /// Inputs up to this magnitude count as zero; after a gate or a draw exact zeros do, which these have made.
  [[nodiscard]] std::optional<float> of_inputs() const {
    return threshold || (!gate_threshold && !drawn) ? threshold : 0.0f;
  }
  bool operator==(const InputSkip&) const = default;
};

enum class SkipMethod : std::uint8_t {
  teal,  // small inputs of every projection (Liu et al. 2024, arXiv 2408.14690)
  down,  // of down projections alone
  cats,  // neurons whose |act(gate)| is small: their outputs of up, their inputs of down (Lee et al. 2024, 2404.08763)
};

struct ThresholdRule {
  std::string pattern;
  float threshold = 0.0f;
};

/// Thresholds are either named or follow from a density and what a profile says of the model's activations. Without any
/// inputs are drawn by lot.
struct InputSkipping {
  SkipMethod method = SkipMethod::teal;
  std::vector<ThresholdRule> thresholds;  // of the patterns that match a layer's name, the last one decides
  double density = 0.0;                   // share of the inputs that are to be kept
  std::string profile_file;               // as the recipe names it; empty: `thresholds` are all there is
  std::shared_ptr<const ActivationProfile> profile = {};  // what the file says, once it is read
  double imposed = 0.0;                                   // share of the inputs that are drawn by lot; 0: none are

  /// Whether the method is for layers of that name; never for the head, nor for experts.
  [[nodiscard]] bool covers(std::string_view layer) const;
  /// Nothing for a layer that is computed in full.
  [[nodiscard]] InputSkip of_layer(std::string_view layer) const;
  /// Whether the layer is a gate or an up of which neurons may be left out by what their gates give.
  [[nodiscard]] bool chooses_neurons_of(std::string_view layer) const;
};

}  // namespace millrace
