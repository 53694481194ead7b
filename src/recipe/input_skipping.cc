#include "recipe/input_skipping.h"

#include "core/fnv.h"
#include "core/philox.h"
#include "recipe/recipe.h"

namespace millrace {

namespace {

/// The same of layers that read the same inputs: q, k and v; gate and up.
std::uint64_t draw_key(std::string_view layer) {
  Fnv1a key;
  const bool alone = layer.ends_with(".o_proj") || layer.ends_with(".down_proj");
  key.add(alone ? layer : layer.substr(0, layer.rfind('.') + 1));
  return key.value();
}

}  // namespace

bool DrawnInputs::keeps(std::int64_t position, std::int64_t input) const {
  const PhiloxBlock block =
      philox4x32_10({static_cast<std::uint32_t>(position), static_cast<std::uint32_t>(input / 4), 0, 0},
                    {static_cast<std::uint32_t>(key), static_cast<std::uint32_t>(key >> 32)});
  return block[static_cast<std::size_t>(input % 4)] * 0x1p-32 < density;
}

bool InputSkipping::covers(std::string_view layer) const {
  if (layer.find(".experts.") != std::string_view::npos) return false;
  if (method == SkipMethod::teal) return layer.find(".self_attn.") != layer.npos || layer.find(".mlp.") != layer.npos;
  return layer.ends_with(".mlp.down_proj");
}

InputSkip InputSkipping::of_layer(std::string_view layer) const {
  if (!covers(layer)) return {};
  if (imposed > 0.0) return {.threshold = {}, .gate_threshold = {}, .drawn = DrawnInputs{imposed, draw_key(layer)}};
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

bool InputSkipping::chooses_neurons_of(std::string_view layer) const {
  if (method != SkipMethod::cats) return false;
  for (const std::string_view name : {"gate_proj", "up_proj", "gate_up_proj"}) {
    const std::string end = ".mlp." + std::string(name);
    if (!layer.ends_with(end)) continue;
    const std::string down = std::string(layer.substr(0, layer.size() - name.size())) + "down_proj";
    return of_layer(down).gate_threshold.value_or(0.0f) > 0.0f;
  }
  return false;
}

}  // namespace millrace
