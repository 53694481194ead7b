#include "recipe/input_skipping.h"

#include "recipe/recipe.h"

namespace millrace {

bool InputSkipping::covers(std::string_view layer) const {
  if (layer.find(".experts.") != std::string_view::npos) return false;
  if (method == SkipMethod::teal) return layer.find(".self_attn.") != layer.npos || layer.find(".mlp.") != layer.npos;
  return layer.ends_with(".mlp.down_proj");
}

InputSkip InputSkipping::of_layer(std::string_view layer) const {
  if (!covers(layer)) return {};
  std::optional<float> threshold;
  const bool gate = method == SkipMethod::cats;
  if (profile != nullptr) {
    const MagnitudeQuantiles* quantiles = gate ? profile->gate_of(layer) : profile->inputs_of(layer);
    if (quantiles != nullptr) threshold = density >= 1.0 ? 0.0f : magnitude_at(*quantiles, 1.0 - density);
  }
  for (auto rule = thresholds.rbegin(); rule != thresholds.rend(); ++rule) {
    if (!matches(rule->pattern, layer)) continue;
    threshold = rule->threshold;
    break;
  }
  return gate ? InputSkip{.threshold = {}, .gate_threshold = threshold}
              : InputSkip{.threshold = threshold, .gate_threshold = {}};
}

}  // namespace millrace
