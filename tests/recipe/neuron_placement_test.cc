// The greedy rule by which neurons are in memory.
#include "recipe/neuron_placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>

namespace millrace {
namespace {

using Counts = std::vector<std::int64_t>;

TEST(NeuronPlacement, TakesWhatFiresMostOftenForAByte) {
  const std::vector<PlacedLayer> layers{{10, {0.9f, 0.5f, 0.1f}}, {10, {0.6f, 0.2f}}, {5, {0.4f, 0.01f}}};
  EXPECT_EQ(place_neurons(layers, 0, 0), (Counts{0, 0, 0}));
  EXPECT_EQ(place_neurons(layers, 10, 0), (Counts{1, 0, 0}));
  EXPECT_EQ(place_neurons(layers, 15, 0), (Counts{1, 0, 1})) << "0.4 for 5 bytes is worth 0.8 for 10";
  EXPECT_EQ(place_neurons(layers, 25, 0), (Counts{1, 1, 1}));
  EXPECT_EQ(place_neurons(layers, 35, 0), (Counts{2, 1, 1}));
  EXPECT_EQ(place_neurons(layers, 39, 0), (Counts{2, 1, 1})) << "neither 0.2 nor 0.01 fits into 4 bytes";
  EXPECT_EQ(place_neurons(layers, 40, 0), (Counts{2, 1, 2})) << "what is left over takes what fits";
  EXPECT_EQ(place_neurons(layers, 1000, 0), (Counts{3, 2, 2}));
}

TEST(NeuronPlacement, GivesEachLayerSome) {
  const std::vector<PlacedLayer> layers{{10, {0.9f, 0.9f, 0.9f, 0.9f}}, {10, {0.1f, 0.1f, 0.1f}}, {10, {0.0f}}};
  EXPECT_EQ(place_neurons(layers, 40, 0), (Counts{4, 0, 0}));
  EXPECT_EQ(place_neurons(layers, 40, 1), (Counts{2, 1, 1}));
  EXPECT_EQ(place_neurons(layers, 60, 2), (Counts{3, 2, 1}));
  EXPECT_EQ(place_neurons(layers, 20, 2), (Counts{1, 1, 0})) << "as far as it goes round";
}

TEST(NeuronPlacement, SharesAlikeWhereAllFireAlike) {
  const std::vector<PlacedLayer> layers(3, {4, std::vector<float>(10, 0.2f)});
  EXPECT_EQ(place_neurons(layers, 60, 0), (Counts{5, 5, 5}));
  EXPECT_EQ(place_neurons(layers, 64, 0), (Counts{6, 5, 5}));
}

/// With neurons of one size nothing is better: no neuron outside fires more often than one inside.
TEST(NeuronPlacement, LeavesNothingBetterOutside) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform;
  for (int round = 0; round < 50; ++round) {
    std::vector<PlacedLayer> layers(1 + random() % 5);
    std::int64_t all = 0;
    for (PlacedLayer& layer : layers) {
      layer.neuron_bytes = 8;
      layer.frequency.resize(1 + random() % 20);
      for (float& frequency : layer.frequency) frequency = uniform(random);
      std::ranges::sort(layer.frequency, std::greater());
      all += std::ssize(layer.frequency);
    }
    const std::uint64_t budget = random() % (8 * static_cast<std::uint64_t>(all) + 8);
    const Counts placed = place_neurons(layers, budget, 0);
    float least = 2.0f, best = -1.0f;
    std::int64_t count = 0;
    for (std::size_t l = 0; l < layers.size(); ++l) {
      count += placed[l];
      const auto& frequency = layers[l].frequency;
      if (placed[l] > 0) least = std::min(least, frequency[static_cast<std::size_t>(placed[l] - 1)]);
      if (placed[l] < std::ssize(frequency)) best = std::max(best, frequency[static_cast<std::size_t>(placed[l])]);
    }
    EXPECT_GE(least, best);
    EXPECT_EQ(count, std::min<std::int64_t>(all, static_cast<std::int64_t>(budget / 8)));
  }
}

}  // namespace
}  // namespace millrace
