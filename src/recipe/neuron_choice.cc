#include "recipe/neuron_choice.h"

#include <algorithm>
#include <numeric>

namespace millrace {

std::vector<std::int32_t> neuron_order(const NeuronChoice& choice, std::int64_t neurons) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(neurons));
  std::iota(order.begin(), order.end(), 0);
  if (choice.profile != nullptr) {
    const std::vector<float>& frequency = choice.profile->frequency;
    std::ranges::stable_sort(order, [&](std::int32_t a, std::int32_t b) {
      return frequency[static_cast<std::size_t>(a)] > frequency[static_cast<std::size_t>(b)];
    });
  }
  return order;
}

std::int64_t hot_neurons(const NeuronChoice& choice) {
  if (choice.profile == nullptr) return 0;
  return std::ranges::count_if(choice.profile->frequency,
                               [&](float frequency) { return double{frequency} >= choice.profile->hot; });
}

std::shared_ptr<const NeuronProfile> NeuronProfiles::of_layer(const std::string& layer) const {
  const auto found = std::ranges::find_if(layers, [&](const auto& profile) { return profile->layer == layer; });
  return found == layers.end() ? nullptr : *found;
}

}  // namespace millrace
