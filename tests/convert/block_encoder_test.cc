// Numbers to blocks and back: against the gguf package's bytes, against half a step, and at the edges.
#include "convert/block_encoder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "core/philox.h"
#include "quant/blocks.h"
#include "quant/codec.h"

namespace millrace {
namespace {

constexpr QuantFormat kFormats[] = {QuantFormat::f32,  QuantFormat::f16,  QuantFormat::bf16, QuantFormat::q8_0,
                                    QuantFormat::q4_0, QuantFormat::q4_1, QuantFormat::q5_0, QuantFormat::q5_1,
                                    QuantFormat::q4_k, QuantFormat::q5_k, QuantFormat::q6_k};
constexpr QuantFormat kKFormats[] = {QuantFormat::q4_k, QuantFormat::q5_k, QuantFormat::q6_k};

std::vector<std::byte> encoded(QuantFormat format, const std::vector<float>& values) {
  std::vector<std::byte> bytes(format_bytes(format, values.size()));
  encode(format, values.data(), bytes.data(), values.size());
  return bytes;
}

std::vector<float> decoded(QuantFormat format, const std::vector<std::byte>& bytes, std::size_t count) {
  std::vector<float> values(count);
  dequantize(format, bytes.data(), values.data(), count);
  return values;
}

std::vector<float> round_trip(QuantFormat format, const std::vector<float>& values) {
  return decoded(format, encoded(format, values), values.size());
}

/// Whole numbers of 24 bits, in 32 blocks each of a size of its own: as tools/conformance/quantize_gguf makes them.
std::vector<float> sample(std::size_t blocks) {
  std::vector<float> values;
  std::uint64_t state = 5;
  for (std::size_t i = 0; i < blocks * 32; ++i) {
    std::uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z = z ^ (z >> 31);
    const auto whole = static_cast<std::int64_t>(z >> 40) - (1 << 23);
    values.push_back(std::ldexp(static_cast<float>(whole), static_cast<int>(i / 32 % 24) - 35));
  }
  return values;
}

/// Numbers as weights have them: a bell, some groups wider than others, some off zero, some outliers.
std::vector<float> weights(std::size_t count, std::uint64_t seed) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto uniform = [&](std::uint32_t k) { return philox_uniform(seed, k, i) - 0.5f; };
    const float bell = uniform(0) + uniform(1) + uniform(2);
    const std::size_t group = i / 32;
    values[i] = bell * (group % 5 == 0 ? 0.2f : 0.04f) + (group % 7 == 3 ? 0.05f : 0.0f);
    if (i % 301 == 0) values[i] *= 6.0f;
  }
  return values;
}

double error_of(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i)
    sum += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
  return sum;
}

TEST(BlockEncoder, BytesAreThoseOfTheGgufPackage) {
  // FNV-1a of what gguf.quantize() 0.19 makes of the sample: `tools/conformance/quantize_gguf --hashes` prints them.
  const std::pair<QuantFormat, std::uint64_t> kHashes[] = {
      {QuantFormat::f16, 0x8ba2a2a80599ac7e},  {QuantFormat::bf16, 0xb21787f10e481d37},
      {QuantFormat::q8_0, 0xd0e508379ea16ed7}, {QuantFormat::q4_0, 0x3042009402440723},
      {QuantFormat::q4_1, 0xf03d403279e099b2}, {QuantFormat::q5_0, 0xd259fcd569e8b695},
      {QuantFormat::q5_1, 0x9cac4553a96794cc},
  };
  const std::vector<float> values = sample(4096);
  for (const auto& [format, expected] : kHashes) {
    std::uint64_t hash = 0xcbf29ce484222325u;
    for (const std::byte byte : encoded(format, values)) {
      hash = (hash ^ std::to_integer<std::uint64_t>(byte)) * 0x100000001b3u;
    }
    EXPECT_EQ(hash, expected) << format_info(format).name;
  }
}

TEST(BlockEncoder, WhatABlockHoldsComesBack) {
  // Values that lie on a grid, whose ends are there, so that the grid is found again.
  for (const auto& [format, lowest, highest] :
       {std::tuple{QuantFormat::q8_0, -127, 127}, std::tuple{QuantFormat::q4_0, -8, 7},
        std::tuple{QuantFormat::q4_1, 0, 15}, std::tuple{QuantFormat::q5_0, -16, 15},
        std::tuple{QuantFormat::q5_1, 0, 31}}) {
    std::vector<float> values;
    for (int i = 0; i < 32; ++i) values.push_back(0.25f * static_cast<float>(lowest + i * 5 % (highest - lowest)));
    values[0] = 0.25f * static_cast<float>(lowest);
    values[9] = 0.25f * static_cast<float>(highest);
    EXPECT_EQ(round_trip(format, values), values) << format_info(format).name;
  }
  for (const QuantFormat format : kKFormats) {
    std::vector<float> values;
    const int codes = format == QuantFormat::q4_k ? 16 : format == QuantFormat::q5_k ? 32 : 64;
    const bool offset = format != QuantFormat::q6_k;
    for (int i = 0; i < 256; ++i) {
      // Each group has the lowest code and the highest.
      const int code = i % 16 == 0 ? 0 : i % 16 == 1 ? codes - 1 : i * 7 % codes;
      values.push_back(0.5f * static_cast<float>(code) - (offset ? 1.0f : 16.0f));
    }
    const std::vector<float> back = round_trip(format, values);
    for (std::size_t i = 0; i < values.size(); ++i) EXPECT_NEAR(back[i], values[i], 0.02f) << format_info(format).name;
  }
}

TEST(BlockEncoder, NumbersAreWithinHalfAStep) {
  const std::vector<float> values = weights(32 * 1024, 3);
  for (const QuantFormat format :
       {QuantFormat::q8_0, QuantFormat::q4_0, QuantFormat::q4_1, QuantFormat::q5_0, QuantFormat::q5_1}) {
    const std::vector<std::byte> bytes = encoded(format, values);
    const std::vector<float> back = decoded(format, bytes, values.size());
    const bool around = format == QuantFormat::q4_0 || format == QuantFormat::q5_0;
    const float top = format == QuantFormat::q4_0 ? 7.0f : 15.0f;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float step = std::fabs(load_scale(bytes.data() + i / 32 * format_info(format).block_bytes));
      // A scale is rounded to a half, which moves the outer codes; the end opposite to the largest has a code less.
      const float slack = step * 127.0f * 0x1p-11f + 0x1p-11f * std::fabs(values[i]);
      const float beyond = around ? std::max(0.0f, std::fabs(values[i]) - (top + 0.5f) * step) : 0.0f;
      ASSERT_LE(std::fabs(values[i] - back[i]), step / 2 + slack + beyond) << format_info(format).name << ' ' << i;
    }
  }
}

TEST(BlockEncoder, SearchIsNeverWorseThanThePlainFitAndMostlyBetter) {
  for (const QuantFormat format : kKFormats) {
    double searched_sum = 0.0, plain_sum = 0.0;
    for (std::uint64_t seed = 0; seed < 64; ++seed) {
      const std::vector<float> values = weights(256, seed);
      std::vector<std::byte> plain(format_info(format).block_bytes);
      encode_k_block_plainly(format, values.data(), plain.data());
      const double searched = error_of(round_trip(format, values), values),
                   fitted = error_of(decoded(format, plain, 256), values);
      EXPECT_LE(searched, fitted * (1 + 1e-5)) << format_info(format).name << ' ' << seed;
      searched_sum += searched;
      plain_sum += fitted;
    }
    EXPECT_LT(searched_sum, 0.95 * plain_sum) << format_info(format).name;
  }
}

TEST(BlockEncoder, ErrorFallsWithBits) {
  const std::vector<float> values = weights(256 * 64, 9);
  double squares = 0.0;
  for (const float value : values) squares += static_cast<double>(value) * value;
  const auto share = [&](QuantFormat format) {
    return std::sqrt(error_of(round_trip(format, values), values) / squares);
  };
  EXPECT_LT(share(QuantFormat::q4_k), 0.09);
  EXPECT_LT(share(QuantFormat::q5_k), 0.045);
  EXPECT_LT(share(QuantFormat::q6_k), 0.022);
  EXPECT_LT(share(QuantFormat::q4_k), share(QuantFormat::q4_0));
  EXPECT_LT(share(QuantFormat::q8_0), 0.008);
}

TEST(BlockEncoder, NothingStaysNothing) {
  for (const QuantFormat format : kFormats) {
    const std::vector<float> zeros(512, 0.0f);
    EXPECT_EQ(round_trip(format, zeros), zeros) << format_info(format).name;
    // Too small for the halves that scales are: zeros, and nothing that is no number.
    for (const float tiny : {1e-45f, 1e-40f, -3e-39f, 1e-30f}) {
      const std::vector<float> small(512, tiny);
      for (const float value : round_trip(format, small)) {
        EXPECT_LE(std::fabs(value), std::fabs(tiny) * 1.02f) << format_info(format).name << ' ' << tiny;
      }
    }
  }
}

TEST(BlockEncoder, ConstantBlocksAndSubnormalScales) {
  for (const QuantFormat format : kFormats) {
    for (const float constant : {1.0f, -1.0f, 0.375f, -300.0f, 2e-5f}) {
      const std::vector<float> values(256, constant);
      for (const float value : round_trip(format, values)) {
        ASSERT_NEAR(value, constant, std::max(std::fabs(constant) * 0x1p-6f, 4e-6f)) << format_info(format).name;
      }
    }
  }
}

TEST(BlockEncoder, WhatIsTooLargeIsInfinite) {
  // So that the caller, who decodes anyway, sees it.
  for (const QuantFormat format : kFormats) {
    if (format == QuantFormat::f32 || format == QuantFormat::bf16) continue;
    std::vector<float> values(256, 0.5f);
    for (const float other : {0.5f, -3e38f}) {
      values[7] = 3e38f;
      values[9] = other;
      const std::vector<float> back = round_trip(format, values);
      EXPECT_FALSE(std::ranges::all_of(back, [](float value) { return std::isfinite(value); }))
          << format_info(format).name;
    }
  }
}

TEST(BlockEncoder, KnowsWhatItWrites) {
  for (const QuantFormat format : kFormats) EXPECT_TRUE(can_encode(format));
  for (const QuantFormat format : {QuantFormat::q2_k, QuantFormat::q3_k, QuantFormat::iq4_nl, QuantFormat::mxfp4,
                                   QuantFormat::f8_e4m3, QuantFormat::codes}) {
    EXPECT_FALSE(can_encode(format));
  }
}

}  // namespace
}  // namespace millrace
