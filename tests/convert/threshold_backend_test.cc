// What is measured with thresholds that change is what a backend does that was told when it packed.
#include "convert/threshold_backend.h"

#include <gtest/gtest.h>

#include <random>

#include "backend/reference/reference_backend.h"
#include "core/check.h"

namespace millrace {
namespace {

constexpr std::int64_t kWidth = 16, kIntermediate = 24, kRows = 3;

std::vector<float> normals(std::mt19937& engine, std::int64_t count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = std::normal_distribution<float>()(engine);
  return values;
}

/// The second row is a prompt's.
ForwardBatch three_rows() {
  ForwardBatch batch;
  for (std::int32_t row = 0; row < kRows; ++row) {
    batch.token_ids.push_back(0);
    batch.positions.push_back(4);
    batch.sequences.push_back({.first_row = row, .rows = 1, .first_position = 4});
    if (row != 1) batch.sequences.back().answer_begin = 4;
  }
  return batch;
}

struct Layers {
  std::mt19937 engine{3};
  std::vector<float> query = normals(engine, kWidth*kWidth), gate_up = normals(engine, 2 * kIntermediate * kWidth),
                     down = normals(engine, kWidth*kIntermediate), x = normals(engine, kRows*kWidth);

  /// Through a projection and a feed-forward network, with what each leaves out by `skip`.
  std::vector<float> run(Backend& backend, const std::function<InputSkip(const std::string&)>& skip,
                         const std::function<void()>& packed = {}) const {
    const auto pack = [&](const std::vector<float>& values, std::int64_t rows, std::int64_t cols, const char* name) {
      const std::string layer = std::string("model.layers.0.") + name;
      auto matrix = backend.pack({{{.format = QuantFormat::f32,
                                    .data = reinterpret_cast<const std::byte*>(values.data()),
                                    .rows = rows,
                                    .cols = cols}},
                                  {layer}},
                                 {.skip = skip(layer)});
      MILLRACE_CHECK(matrix.ok(), "not packed");
      return std::move(*matrix);
    };
    const auto first = pack(query, kWidth, kWidth, "self_attn.q_proj"),
               second = pack(gate_up, 2 * kIntermediate, kWidth, "mlp.gate_proj"),
               third = pack(down, kWidth, kIntermediate, "mlp.down_proj");
    if (packed) packed();
    backend.begin(three_rows());
    std::vector<float> between(kRows * kWidth), scratch(kRows * 2 * kIntermediate), out(kRows * kWidth);
    backend.linear({first.get()}, x.data(), kRows, between.data(), kWidth);
    backend.gated_ffn({{second.get()}, {third.get()}}, between.data(), kRows, scratch.data(), out.data());
    return out;
  }
};

InputSkip nothing(const std::string& /*layer*/) {
  return {};
}

TEST(ThresholdBackend, DoesWhatABackendDoesThatWasToldWhenItPacked) {
  const Layers layers;
  for (const SkipMethod method : {SkipMethod::teal, SkipMethod::down, SkipMethod::cats}) {
    InputSkipping skipping;
    skipping.method = method;
    skipping.thresholds = {{"*.*_proj", 0.5f}, {"*.down_proj", 0.3f}};
    ThresholdBackend ours(make_reference_backend(), method);
    const auto set = [&] {
      std::vector<std::optional<float>> thresholds;
      for (const auto& group : ours.groups()) {
        const InputSkip skip = skipping.of_layer(group.layers.front());
        thresholds.push_back(skip.threshold ? skip.threshold : skip.gate_threshold);
      }
      EXPECT_EQ(thresholds.size(), method == SkipMethod::teal ? 3u : 1u);
      ours.set(thresholds);
    };
    const auto theirs = make_reference_backend();
    const std::vector<float> out = layers.run(ours, nothing, set);
    EXPECT_EQ(out, layers.run(*theirs, [&](const std::string& layer) { return skipping.of_layer(layer); }));
    EXPECT_NE(out, layers.run(*make_reference_backend(), nothing));
    double kept = 0.0, all = 0.0;
    for (std::size_t g = 0; g < ours.groups().size(); ++g) {
      kept += static_cast<double>(ours.counts()[g].kept * ours.groups()[g].outputs);
      all += static_cast<double>(ours.counts()[g].all * ours.groups()[g].outputs);
    }
    EXPECT_EQ(kept, theirs->skip_counts().kept);
    EXPECT_EQ(all, theirs->skip_counts().all);
    EXPECT_LT(kept, all);
  }
}

TEST(ThresholdBackend, WithoutThresholdsAndWhileWatchingNothingChanges) {
  const Layers layers;
  for (const SkipMethod method : {SkipMethod::teal, SkipMethod::cats}) {
    ThresholdBackend ours(make_reference_backend(), method);
    const std::vector<float> dense = layers.run(*make_reference_backend(), nothing);
    EXPECT_EQ(layers.run(ours, nothing), dense);
    ours.watch(true);
    EXPECT_EQ(layers.run(ours, nothing), dense);
    // Each run has packed its own; the last one was watched.
    const std::size_t last = ours.groups().size() - 1;
    EXPECT_EQ(ours.magnitudes(0).back(), 0.0f);
    EXPECT_GT(ours.magnitudes(last).back(), 0.0f);
  }
}

}  // namespace
}  // namespace millrace
