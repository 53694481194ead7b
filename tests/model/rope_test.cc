// What the conformance fixtures cannot show one by one: the regimes of each kind of scaling and where they change.

#include <gtest/gtest.h>

#include <cmath>

#include "model/config.h"

namespace millrace {
namespace {

RopeSpec plain() {
  return {.rotary_dim = 32, .theta = 10000.0, .original_max_position = 2048, .max_position = 2048};
}

TEST(Rope, PlainFrequenciesFallFromOneToThetasInverse) {
  const RopeFrequencies f = rope_frequencies(plain(), 10);
  ASSERT_EQ(f.inv_freq.size(), 16u);
  EXPECT_FLOAT_EQ(f.inv_freq.front(), 1.0f);
  for (std::size_t i = 0; i < f.inv_freq.size(); ++i) {
    EXPECT_FLOAT_EQ(f.inv_freq[i], std::pow(10000.0f, -static_cast<float>(i) / 16.0f));
  }
  EXPECT_EQ(f.scale, 1.0f);
}

TEST(Rope, OnlyDynamicAndLongRopeDependOnTheLength) {
  RopeSpec spec = plain();
  spec.factor = 4.0;
  spec.short_factor.assign(16, 1.0);
  spec.long_factor.assign(16, 3.0);
  spec.original_max_position = 512;
  for (const RopeScaling scaling : {RopeScaling::none, RopeScaling::linear, RopeScaling::dynamic, RopeScaling::llama3,
                                    RopeScaling::yarn, RopeScaling::longrope, RopeScaling::proportional}) {
    spec.scaling = scaling;
    const bool depends = rope_frequencies(spec, 100).inv_freq != rope_frequencies(spec, 5000).inv_freq;
    EXPECT_EQ(depends, rope_depends_on_length(spec)) << static_cast<int>(scaling);
  }
}

TEST(Rope, DynamicScalingBeginsBeyondTheContext) {
  RopeSpec spec = plain();
  spec.scaling = RopeScaling::dynamic;
  spec.factor = 2.0;
  EXPECT_EQ(rope_frequencies(spec, 2048).inv_freq, rope_frequencies(plain(), 0).inv_freq);
  EXPECT_LT(rope_frequencies(spec, 2049).inv_freq.back(), rope_frequencies(plain(), 0).inv_freq.back());
}

TEST(Rope, LongRopeChangesItsFactorsBehindTheOriginalContext) {
  RopeSpec spec = plain();
  spec.scaling = RopeScaling::longrope;
  spec.original_max_position = 512;
  spec.factor = 4.0;
  spec.short_factor.assign(16, 1.0);
  spec.long_factor.assign(16, 2.0);
  const std::vector<float> shorter = rope_frequencies(spec, 512).inv_freq,
                           longer = rope_frequencies(spec, 513).inv_freq;
  for (std::size_t i = 0; i < shorter.size(); ++i) EXPECT_FLOAT_EQ(longer[i], shorter[i] / 2.0f);
  EXPECT_FLOAT_EQ(rope_frequencies(spec, 1).scale, std::sqrt(1.0f + std::log(4.0f) / std::log(512.0f)));
  spec.attention_factor = 1.25;
  EXPECT_EQ(rope_frequencies(spec, 1).scale, 1.25f);
}

TEST(Rope, Llama3KeepsHighFrequenciesAndDividesLowOnes) {
  RopeSpec spec = plain();
  spec.scaling = RopeScaling::llama3;
  spec.factor = 8.0;
  spec.original_max_position = 1024;
  const std::vector<float> base = rope_frequencies(plain(), 0).inv_freq, scaled = rope_frequencies(spec, 0).inv_freq;
  EXPECT_EQ(scaled.front(), base.front());
  EXPECT_EQ(scaled.back(), base.back() / 8.0f);
  for (std::size_t i = 0; i < base.size(); ++i) {
    EXPECT_LE(scaled[i], base[i]);
    EXPECT_GE(scaled[i], base[i] / 8.0f * 0.9999f);
  }
}

TEST(Rope, YarnInterpolatesBetweenPlainAndDivided) {
  RopeSpec spec = plain();
  spec.scaling = RopeScaling::yarn;
  spec.factor = 16.0;
  spec.original_max_position = 1024;
  const RopeFrequencies f = rope_frequencies(spec, 0);
  const std::vector<float> base = rope_frequencies(plain(), 0).inv_freq;
  EXPECT_FLOAT_EQ(f.inv_freq.front(), base.front());
  EXPECT_FLOAT_EQ(f.inv_freq.back(), base.back() / 16.0f);
  EXPECT_FLOAT_EQ(f.scale, 0.1f * std::log(16.0f) + 1.0f);
  spec.mscale = spec.mscale_all_dim = 1.0;
  EXPECT_FLOAT_EQ(rope_frequencies(spec, 0).scale, 1.0f);
}

TEST(Rope, ProportionalLeavesTheLastPairsStanding) {
  RopeSpec spec = plain();
  spec.scaling = RopeScaling::proportional;
  spec.partial_rotary_factor = 0.25;
  const std::vector<float> base = rope_frequencies(plain(), 0).inv_freq, f = rope_frequencies(spec, 0).inv_freq;
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(f[i], base[i]);
  for (std::size_t i = 4; i < 16; ++i) EXPECT_EQ(f[i], 0.0f);
}

TEST(Rope, DivisorsOfAFileDivideEachFrequency) {
  RopeSpec spec = plain();
  spec.freq_divisors.assign(16, 4.0f);
  const std::vector<float> base = rope_frequencies(plain(), 0).inv_freq, f = rope_frequencies(spec, 0).inv_freq;
  for (std::size_t i = 0; i < 16; ++i) EXPECT_EQ(f[i], base[i] / 4.0f);
}

}  // namespace
}  // namespace millrace
