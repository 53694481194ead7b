// Training of the predictor that says which neurons of a feed-forward network fire (NeuronProfile).
#pragma once

#include <cstdint>
#include <vector>

#include "core/thread_pool.h"
#include "recipe/neuron_choice.h"

namespace millrace {

/// What a network read, and which of its neurons fired, row after row of a text.
struct NeuronSamples {
  std::string layer;  // "model.layers.0.mlp"
  std::int64_t inputs = 0, neurons = 0;
  std::vector<std::uint16_t> x;     // bf16 [rows][inputs]
  std::vector<std::uint8_t> fired;  // [rows][row_bytes()], a bit each, the lowest first

  [[nodiscard]] std::int64_t row_bytes() const { return (neurons + 7) / 8; }
  [[nodiscard]] std::int64_t rows() const { return inputs == 0 ? 0 : static_cast<std::int64_t>(x.size()) / inputs; }
  [[nodiscard]] bool fires(std::int64_t row, std::int64_t neuron) const {
    return (fired[static_cast<std::size_t>(row * row_bytes() + neuron / 8)] >> (neuron % 8) & 1) != 0;
  }
};

struct PredictorOptions {
  std::int64_t rank = 64;
  double recall = 0.96;  // of cold neurons that fire, which share is to be predicted
  double hot = 0.5;      // as NeuronProfile has it
  int epochs = 10;
};

/// Rows that it takes at least: a tenth of them judges the predictor.
inline constexpr std::int64_t kLeastSamples = 100;

/// Trains on the first eight tenths of the rows, sets the threshold for the wanted recall on the ninth, and fills in
/// the figures on the last. Weighted logistic loss (a neuron that is missed costs more than one that is computed in
/// vain) and Adam (Kingma & Ba 2015, arXiv 1412.6980); initial values by Philox. The result is a function of samples
/// and options, not of the number of threads. At least kLeastSamples rows.
NeuronProfile train_predictor(const NeuronSamples& samples, const PredictorOptions& options, ThreadPool& pool);

}  // namespace millrace
