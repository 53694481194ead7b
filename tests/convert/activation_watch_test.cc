// What is seen of activations: quantiles of magnitudes, inputs of layers, gates.
#include "convert/activation_watch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "backend/reference/reference_backend.h"
#include "core/check.h"

namespace millrace {
namespace {

TEST(MagnitudeCounts, QuantilesDivideTheValuesAsTheySay) {
  std::mt19937 engine(1);
  MagnitudeCounts counts;
  std::vector<float> sizes(200000);
  for (float& size : sizes) {
    const float value = std::normal_distribution<float>(0.0f, 0.01f)(engine);
    counts.add(value);
    size = std::fabs(value);
  }
  std::ranges::sort(sizes);
  const MagnitudeQuantiles quantiles = counts.quantiles();
  ASSERT_EQ(quantiles.size(), kMagnitudeQuantiles);
  EXPECT_TRUE(std::ranges::is_sorted(quantiles));
  for (const double share : {0.1, 0.25, 0.5, 0.77, 0.95}) {
    const auto below = std::ranges::upper_bound(sizes, magnitude_at(quantiles, share)) - sizes.begin();
    EXPECT_NEAR(static_cast<double>(below) / static_cast<double>(sizes.size()), share, 0.002) << share;
  }
  EXPECT_NEAR(quantiles.back(), sizes.back(), 0.01f * sizes.back());
}

TEST(MagnitudeCounts, ZerosAndWhatIsNoNumberHaveAPlace) {
  EXPECT_EQ(MagnitudeCounts().quantiles().back(), 0.0f);
  MagnitudeCounts counts;
  for (int i = 0; i < 3; ++i) counts.add(-0.0f);
  counts.add(std::numeric_limits<float>::infinity());
  const MagnitudeQuantiles quantiles = counts.quantiles();
  EXPECT_EQ(magnitude_at(quantiles, 0.7), 0.0f);
  EXPECT_TRUE(std::isfinite(quantiles.back()));
}

TEST(ActivationWatch, SeesInputsAndGatesAndChangesNothing) {
  constexpr std::int64_t kWidth = 8, kIntermediate = 6;
  std::mt19937 engine(2);
  const auto normals = [&](std::int64_t count) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = std::normal_distribution<float>()(engine);
    return values;
  };
  const std::vector<float> gate_up = normals(2 * kIntermediate * kWidth), down = normals(kWidth * kIntermediate),
                           x = normals(2 * kWidth);
  const auto run = [&](Backend& backend) {
    const auto pack = [&](const std::vector<float>& values, std::int64_t rows, std::int64_t cols, const char* name) {
      auto matrix = backend.pack({{{.format = QuantFormat::f32,
                                    .data = reinterpret_cast<const std::byte*>(values.data()),
                                    .rows = rows,
                                    .cols = cols}},
                                  {name}},
                                 {});
      MILLRACE_CHECK(matrix.ok(), "not packed");
      return std::move(*matrix);
    };
    const auto first = pack(gate_up, 2 * kIntermediate, kWidth, "gate_up"),
               second = pack(down, kWidth, kIntermediate, "down");
    std::vector<float> scratch(2 * 2 * kIntermediate), out(2 * kWidth);
    backend.gated_ffn({{first.get()}, {second.get()}}, x.data(), 2, scratch.data(), out.data());
    return out;
  };
  ActivationWatch watch(make_reference_backend());
  EXPECT_EQ(run(watch), run(*make_reference_backend()));
  const ActivationProfile profile = watch.profile();
  ASSERT_EQ(profile.inputs.size(), 2u);
  ASSERT_EQ(profile.gates.size(), 1u);
  // The largest of each, to the width of a bin.
  float largest_x = 0.0f, largest_gate = 0.0f, largest_hidden = 0.0f;
  for (const float value : x) largest_x = std::max(largest_x, std::fabs(value));
  for (std::int64_t r = 0; r < 2; ++r) {
    for (std::int64_t i = 0; i < kIntermediate; ++i) {
      float gate = 0.0f, up = 0.0f;
      for (std::int64_t k = 0; k < kWidth; ++k) {
        const float value = x[static_cast<std::size_t>(r * kWidth + k)];
        gate += value * gate_up[static_cast<std::size_t>(i * kWidth + k)];
        up += value * gate_up[static_cast<std::size_t>((kIntermediate + i) * kWidth + k)];
      }
      const float activated = gate / (1.0f + std::exp(-gate));
      largest_gate = std::max(largest_gate, std::fabs(activated));
      largest_hidden = std::max(largest_hidden, std::fabs(activated * up));
    }
  }
  EXPECT_NEAR(profile.inputs_of("gate_up")->back(), largest_x, 0.01f * largest_x);
  EXPECT_NEAR(profile.inputs_of("down")->back(), largest_hidden, 0.01f * largest_hidden);
  EXPECT_NEAR(profile.gate_of("down")->back(), largest_gate, 0.01f * largest_gate);
}

}  // namespace
}  // namespace millrace
