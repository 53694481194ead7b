// Which neurons of a feed-forward network rows of answers compute, as a recipe says it (docs/sparsity.md).
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

namespace millrace {

/// What `millrace calibrate --predictor` learnt of a layer's neurons. The predictor is of low rank (Liu et al. 2023,
/// "Deja Vu", arXiv 2310.17157; with a ReLU between, as PowerInfer has it, arXiv 2312.12456): neuron i is thought to
/// fire where out[i] · relu(in x) + bias[i] > 0, x being what the layer reads.
struct NeuronProfile {
  std::string layer;               // "model.layers.0.mlp"
  std::int64_t inputs = 0;         // width of x
  std::int64_t rank = 0;           // rows of `in`
  std::vector<float> frequency;    // [neurons]: the share of tokens for which it fires
  std::vector<std::uint16_t> in;   // bf16 [rank, inputs]
  std::vector<std::uint16_t> out;  // bf16 [neurons, rank]
  std::vector<float> bias;         // [neurons]
  double hot = 0;                  // neurons that fire at least as often are computed always
  // Of tokens that it was not trained on: which share of what fires is computed, of cold neurons alone and of all;
  // which share of the neurons is computed, and which share fires.
  double cold_recall = 0, recall = 0, density = 0, firing = 0;

  [[nodiscard]] std::int64_t neurons() const { return static_cast<std::int64_t>(frequency.size()); }
};

enum class NeuronMethod : std::uint8_t {
  exact,      // those whose gate is not zero: nothing is lost, where the activation gives zeros
  predicted,  // hot ones, and those that the predictor says
  imposed     // made-up ones, to measure speed with made-up weights
};

/// Of one layer.
struct NeuronChoice {
  NeuronMethod method = NeuronMethod::exact;
  double density = 1.0;     // imposed: the share of neurons
  std::uint32_t layer = 0;  // imposed: its number
  // Of the neurons in their order, how many of the first are in memory; the others are in the backend's store.
  std::int64_t resident = std::numeric_limits<std::int64_t>::max();
  std::shared_ptr<const NeuronProfile> profile = {};  // predicted
};

/// Neurons in the order in which they are held: those that fire most often first, of equals the lower first. Without a
/// profile their own.
std::vector<std::int32_t> neuron_order(const NeuronChoice& choice, std::int64_t neurons);
/// How many of the first of that order are hot.
std::int64_t hot_neurons(const NeuronChoice& choice);

/// Whether a made-up mask has neuron `neuron` of layer `layer` in the row of position `position`. Each is drawn by
/// itself, so that rows have nothing in common: the hardest case for a cache of neurons.
constexpr bool imposed_fires(std::uint32_t layer, std::int64_t neuron, std::int64_t position, double density) {
  // The finaliser of SplitMix64 (Steele, Lea, Flood 2014), which is quicker than Philox and good enough to make up.
  std::uint64_t z =
      (static_cast<std::uint64_t>(position) << 32) ^ (std::uint64_t{layer} << 24) ^ static_cast<std::uint64_t>(neuron);
  z = (z + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1p-53 < density;
}

/// Of a model.
struct NeuronProfiles {
  std::string model;  // fingerprint of its files (runtime/model_fingerprint.h)
  std::vector<std::shared_ptr<const NeuronProfile>> layers;

  /// Null where there is none.
  [[nodiscard]] std::shared_ptr<const NeuronProfile> of_layer(const std::string& layer) const;
};

/// As a recipe's "activations" say it, for all layers.
struct NeuronSkipping {
  NeuronMethod method = NeuronMethod::exact;
  double density = 1.0;      // imposed
  double dense_above = 1.0;  // layers whose profile has a larger density are computed in full
  std::string profile_file;  // predicted: as the recipe names it
  std::shared_ptr<const NeuronProfiles> profiles = {};  // once it is read
};

}  // namespace millrace
