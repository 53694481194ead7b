#include "convert/linear_layers.h"

#include <algorithm>
#include <memory>
#include <set>

#include "backend/reference/reference_backend.h"
#include "model/families/family.h"
#include "model/weight_loader.h"

namespace millrace {

namespace {

constexpr std::string_view kWeight = ".weight";

/// "model.layers.N.mlp.experts.E.gate_proj" as the recipe's "model.layers.N.mlp.experts.gate_up_proj".
std::optional<std::string> expert_layer(const std::string& stem, const ExpertNames& names) {
  const std::size_t place = stem.find('.' + names.each + '.');
  if (place == std::string::npos) return std::nullopt;
  const std::string expert = stem.substr(place + names.each.size() + 2);
  const std::size_t dot = expert.find('.');
  if (dot == std::string::npos || expert.find_first_not_of("0123456789") != dot) return std::nullopt;
  const std::string projection = expert.substr(dot + 1), layer = stem.substr(0, place) + ".mlp.experts.";
  if (projection == names.each_gate || projection == names.each_up) return layer + "gate_up_proj";
  if (projection == names.each_down) return layer + "down_proj";
  return std::nullopt;
}

}  // namespace

Result<LinearLayers> LinearLayers::of(const Checkpoint& checkpoint) {
  LinearLayers result;
  MILLRACE_TRY(result.config_, parse_model_config(checkpoint.config(), checkpoint.text().generation_config));
  MILLRACE_TRY(result.names_, parse_tensor_names(checkpoint.config(), result.config_));
  const TensorSource source = TensorSource::of_checkpoint(checkpoint);
  const std::unique_ptr<Backend> backend = make_reference_backend();
  std::set<std::string> layers;
  WeightLoader loader(result.config_, result.names_, source, *backend, {}, [&](const std::string& layer) {
    layers.insert(layer);
    return LinearFormat{};
  });
  MILLRACE_TRY([[maybe_unused]] const std::uint64_t bytes, loader.measure());
  if (!source.has("lm_head.weight")) layers.erase("lm_head");
  result.layers_.assign(layers.begin(), layers.end());
  return result;
}

std::optional<std::string> LinearLayers::of_expert(const std::string& tensor, std::int64_t expert) const {
  const ExpertNames& names = names_.experts;
  for (const auto& [stacked, each] : {std::pair<std::string_view, const std::string&>{"gate_proj", names.each_gate},
                                      {"up_proj", names.each_up},
                                      {"down_proj", names.each_down}}) {
    const std::string end = fmt::format(".{}.{}{}", names.stacked, stacked, kWeight);
    if (!tensor.ends_with(end)) continue;
    return fmt::format("{}.{}.{}.{}{}", tensor.substr(0, tensor.size() - end.size()), names.each, expert, each,
                       kWeight);
  }
  return std::nullopt;
}

std::optional<std::string> LinearLayers::of_tensor(const std::string& tensor) const {
  if (!tensor.ends_with(kWeight)) return std::nullopt;
  const std::string stem = tensor.substr(0, tensor.size() - kWeight.size());
  const std::string layer = expert_layer(stem, names_.experts).value_or(stem);
  if (!std::ranges::binary_search(layers_, layer)) return std::nullopt;
  return layer;
}

}  // namespace millrace
