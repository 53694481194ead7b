// A predictor finds neurons that were planted so that they can be predicted, whatever the number of threads.
#include "convert/predictor_training.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "core/float16.h"

namespace millrace {
namespace {

constexpr std::int64_t kInputs = 24, kNeurons = 60, kPlanted = 4;

/// Neurons look at kPlanted directions of the inputs; the first ten fire nearly always. With `noise` all of them are
/// thrown instead.
NeuronSamples samples_of(std::int64_t rows, bool noise) {
  std::mt19937 engine(7);
  std::normal_distribution<float> normal;
  std::vector<float> directions(kPlanted * kInputs), mix(kNeurons * kPlanted);
  for (float& value : directions) value = normal(engine) / std::sqrt(static_cast<float>(kInputs));
  for (float& value : mix) value = normal(engine);
  NeuronSamples samples;
  samples.layer = "planted";
  samples.inputs = kInputs;
  samples.neurons = kNeurons;
  samples.fired.assign(static_cast<std::size_t>(rows * samples.row_bytes()), 0);
  for (std::int64_t row = 0; row < rows; ++row) {
    float seen[kPlanted] = {};
    for (std::int64_t k = 0; k < kInputs; ++k) {
      const float value = normal(engine);
      samples.x.push_back(float_to_bf16(value));
      for (std::int64_t j = 0; j < kPlanted; ++j)
        seen[j] += value * directions[static_cast<std::size_t>(j * kInputs + k)];
    }
    for (std::int64_t i = 0; i < kNeurons; ++i) {
      float gate = noise ? 2.0f * normal(engine) : 0.0f;
      for (std::int64_t j = 0; j < kPlanted && !noise; ++j)
        gate += seen[j] * mix[static_cast<std::size_t>(i * kPlanted + j)];
      if (gate <= (i < 10 ? -5.0f : 2.0f)) continue;
      std::uint8_t& byte = samples.fired[static_cast<std::size_t>(row * samples.row_bytes() + i / 8)];
      byte = static_cast<std::uint8_t>(byte | 1u << (i % 8));
    }
  }
  return samples;
}

NeuronProfile trained(const NeuronSamples& samples, int threads) {
  const auto pool = ThreadPool::create(threads);
  return train_predictor(samples, {.rank = 16, .recall = 0.97, .hot = 0.8, .epochs = 20}, **pool);
}

TEST(PredictorTraining, FindsWhatWasPlanted) {
  const NeuronProfile profile = trained(samples_of(8000, false), 1);
  EXPECT_EQ(profile.layer, "planted");
  EXPECT_EQ(profile.rank, 16);
  NeuronChoice choice;
  choice.profile = std::make_shared<const NeuronProfile>(profile);
  EXPECT_EQ(hot_neurons(choice), 10);
  EXPECT_GE(profile.cold_recall, 0.95);
  EXPECT_GE(profile.recall, profile.cold_recall);
  // Hardly more than what fires: a predictor that says always yes would compute everything.
  EXPECT_LT(profile.density, profile.firing + 0.06);
  EXPECT_LT(profile.density, 0.4);
}

/// What cannot be predicted is caught by computing nearly everything: the figures must say so.
TEST(PredictorTraining, OfNoiseHasNothingToSave) {
  const NeuronProfile profile = trained(samples_of(4000, true), 1);
  EXPECT_GE(profile.cold_recall, 0.93);
  EXPECT_GT(profile.density, 0.85);
}

TEST(PredictorTraining, DoesNotDependOnThreads) {
  const NeuronSamples samples = samples_of(1000, false);
  const NeuronProfile one = trained(samples, 1), three = trained(samples, 3);
  EXPECT_EQ(one.in, three.in);
  EXPECT_EQ(one.out, three.out);
  EXPECT_EQ(one.bias, three.bias);
  EXPECT_EQ(one.recall, three.recall);
}

}  // namespace
}  // namespace millrace
