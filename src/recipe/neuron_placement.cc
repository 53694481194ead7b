#include "recipe/neuron_placement.h"

#include <algorithm>
#include <queue>

namespace millrace {

std::vector<std::int64_t> place_neurons(std::span<const PlacedLayer> layers, std::uint64_t budget, std::int64_t least) {
  std::vector<std::int64_t> placed(layers.size(), 0);
  const auto take = [&](std::size_t l) {
    const bool fits = placed[l] < std::ssize(layers[l].frequency) && layers[l].neuron_bytes <= budget;
    if (fits) {
      budget -= layers[l].neuron_bytes;
      ++placed[l];
    }
    return fits;
  };
  for (std::int64_t round = 0; round < least; ++round) {
    for (std::size_t l = 0; l < layers.size(); ++l) take(l);
  }
  // The next neuron of each layer; of equal ones that of the layer which has fewer, of these the first.
  struct Next {
    double worth;
    std::int64_t placed;
    std::size_t layer;
    bool operator<(const Next& other) const {
      if (worth != other.worth) return worth < other.worth;
      return placed != other.placed ? placed > other.placed : layer > other.layer;
    }
  };
  std::priority_queue<Next> queue;
  const auto offer = [&](std::size_t l) {
    if (placed[l] >= std::ssize(layers[l].frequency)) return;
    const double frequency = layers[l].frequency[static_cast<std::size_t>(placed[l])];
    queue.push({frequency / static_cast<double>(std::max<std::uint64_t>(layers[l].neuron_bytes, 1)), placed[l], l});
  };
  for (std::size_t l = 0; l < layers.size(); ++l) offer(l);
  while (!queue.empty()) {
    const std::size_t layer = queue.top().layer;
    queue.pop();
    if (take(layer)) offer(layer);
  }
  return placed;
}

}  // namespace millrace
