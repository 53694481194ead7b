#include "quant/codes.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "core/float16.h"

namespace millrace {
namespace {

struct Rounded {
  std::vector<std::int8_t> codes;
  std::vector<float> scales;
  std::vector<std::uint8_t> zeros;
  std::vector<float> values;
  float row_scale = 0.0f;
};

Rounded round_row(const CodeFormat& format, const std::vector<float>& weights) {
  const auto cols = static_cast<std::int64_t>(weights.size());
  const auto groups = static_cast<std::size_t>(format.groups(cols));
  Rounded r{
      std::vector<std::int8_t>(weights.size()), std::vector<float>(groups), std::vector<std::uint8_t>(groups), {}, 0};
  quantize_row(format, weights.data(), cols, {r.codes.data(), r.scales.data(), r.zeros.data(), &r.row_scale});
  for (std::size_t k = 0; k < weights.size(); ++k) {
    const std::size_t group = format.group == 0 ? 0 : k / static_cast<std::size_t>(format.group);
    const float step = step_of_code(format.kind, r.codes[k], r.zeros[group]);
    r.values.push_back(r.scales[group] * step * r.row_scale);
  }
  return r;
}

std::vector<float> normals(std::uint32_t seed, std::size_t count, float mean = 0.0f) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> draw(mean, 1.0f);
  std::vector<float> values(count);
  for (float& value : values) value = draw(engine);
  return values;
}

const std::vector<CodeFormat> kFormats = {{},
                                          {CodeKind::int4, 32, false},
                                          {CodeKind::int4, 64, false},
                                          {CodeKind::int4, 128, false},
                                          {CodeKind::int4, 32, true},
                                          {CodeKind::int4, 64, true},
                                          {CodeKind::int4, 128, true}};

const CodeFormat kNvfp4{.kind = CodeKind::e2m1, .group = 16}, kMxfp4{.kind = CodeKind::e2m1, .group = 32};

std::vector<CodeFormat> all_formats() {
  std::vector<CodeFormat> all = kFormats;
  all.push_back(kNvfp4);
  all.push_back(kMxfp4);
  all.push_back({.kind = CodeKind::e4m3});
  return all;
}

TEST(CodeFormat, NamesAreReadAsTheyAreWritten) {
  for (const CodeFormat& format : all_formats()) {
    EXPECT_EQ(code_format_from_name(code_format_name(format)), format) << code_format_name(format);
    CodeFormat float_inputs = format;
    float_inputs.float_inputs = true;
    EXPECT_EQ(code_format_name(float_inputs), code_format_name(format) + ".a16");
    EXPECT_EQ(code_format_from_name(code_format_name(format) + ".a16"), float_inputs);
  }
  EXPECT_EQ(code_format_from_name("int4"), (CodeFormat{CodeKind::int4, 128, false}));
  EXPECT_EQ(code_format_from_name("int4.sym"), (CodeFormat{CodeKind::int4, 128, true}));
  for (const char* name : {"", "int", "int88", "int8.g32", "int4.g", "int4.g3", "int4.g320", "int4.g32.", "int4.symm",
                           "nvfp4.g16", "mxfp", ".a16", "int8.a16.a16", "int4.a16.sym", "int8.a8"}) {
    EXPECT_FALSE(code_format_from_name(name)) << name;
  }
}

TEST(QuantizeRow, TheErrorIsAtMostHalfAStep) {
  for (const CodeFormat& format : kFormats) {
    for (const float mean : {0.0f, 3.0f, -3.0f}) {
      const std::vector<float> weights = normals(7, 300, mean);
      const Rounded r = round_row(format, weights);
      for (std::size_t k = 0; k < weights.size(); ++k) {
        const std::size_t group = format.group == 0 ? 0 : k / static_cast<std::size_t>(format.group);
        // The zero point is rounded too, which moves the ends by another half; symmetric 4 bits cut one end there.
        const float steps = format.kind == CodeKind::int8 ? 0.5001f : 1.0001f;
        EXPECT_LE(std::fabs(r.values[k] - weights[k]), steps * r.scales[group])
            << code_format_name(format) << " weight " << weights[k];
      }
    }
  }
}

TEST(QuantizeRow, CodesAndScalesAreThoseOfTheFormat) {
  for (const CodeFormat& format : kFormats) {
    const Rounded r = round_row(format, normals(11, 512));
    const int low = format.kind == CodeKind::int8 ? -127 : 0, high = format.kind == CodeKind::int8 ? 127 : 15;
    int lowest = 200, highest = -200;
    for (const std::int8_t code : r.codes) {
      lowest = std::min<int>(lowest, code);
      highest = std::max<int>(highest, code);
    }
    EXPECT_GE(lowest, low);
    EXPECT_LE(highest, high);
    EXPECT_TRUE(lowest == low || highest == high) << code_format_name(format);
    for (const float scale : r.scales) {
      EXPECT_TRUE(format.kind == CodeKind::int8 || f16_to_float(float_to_f16(scale)) == scale) << scale;
    }
    for (const std::uint8_t zero : r.zeros) {
      EXPECT_LE(zero, format.kind == CodeKind::int8 ? 0 : 15);
      EXPECT_TRUE(format.kind == CodeKind::int8 || !format.symmetric || zero == 8);
    }
  }
}

/// The value of E2M1 that is nearest, by looking at all of them.
double nearest_value(double wanted, double unit) {
  double best = 0.0;
  for (const std::int8_t step : kE2m1Steps) {
    if (std::fabs(step * unit - wanted) < std::fabs(best - wanted)) best = step * unit;
  }
  return best;
}

TEST(QuantizeRow, E2m1TakesTheNearestValueOfTheGroup) {
  for (const CodeFormat& format : {kNvfp4, kMxfp4}) {
    std::vector<float> weights = normals(23, 300);
    for (std::size_t k = 64; k < 128; ++k) weights[k] *= 1e-4f;  // groups of very unlike sizes
    const Rounded r = round_row(format, weights);
    for (std::size_t k = 0; k < weights.size(); ++k) {
      const double unit = static_cast<double>(r.row_scale) * r.scales[k / static_cast<std::size_t>(format.group)];
      const double best = nearest_value(weights[k], unit);
      EXPECT_NEAR(std::fabs(r.values[k] - weights[k]), std::fabs(best - weights[k]), 1e-6 * std::fabs(weights[k]))
          << code_format_name(format) << " weight " << k;
    }
  }
}

TEST(QuantizeRow, ScalesOfE2m1AreThoseOfTheFormat) {
  const std::vector<float> weights = normals(29, 320);
  const Rounded nv = round_row(kNvfp4, weights), mx = round_row(kMxfp4, weights);
  float largest = 0.0f;
  for (const float scale : nv.scales) {
    EXPECT_EQ(e4m3_to_float(float_to_e4m3(scale)), scale);
    EXPECT_EQ(f16_to_float(float_to_f16(scale)), scale);
    largest = std::max(largest, scale);
  }
  EXPECT_EQ(largest, kE4m3Largest) << "the largest weight is taken to the end of both ranges";
  for (std::size_t g = 0; g < mx.scales.size(); ++g) {
    float size = 0.0f;
    for (std::size_t k = 32 * g; k < 32 * (g + 1); ++k) size = std::max(size, std::fabs(weights[k]));
    EXPECT_EQ(f16_to_float(float_to_f16(mx.scales[g])), mx.scales[g]);
    // A step is half of the scale, which is 2^(exponent of the largest weight - exponent of 6).
    EXPECT_EQ(2.0f * mx.row_scale * mx.scales[g], std::ldexp(1.0f, std::ilogb(size) - 2));
  }
}

TEST(QuantizeRow, E4m3TakesTheNearestValue) {
  const std::vector<float> weights = normals(31, 300);
  const Rounded r = round_row({.kind = CodeKind::e4m3}, weights);
  float largest = 0.0f;
  for (const float weight : weights) largest = std::max(largest, std::fabs(weight));
  EXPECT_EQ(r.scales[0], largest / kE4m3Largest);
  for (std::size_t k = 0; k < weights.size(); ++k) {
    const double wanted = weights[k] / static_cast<double>(r.scales[0]);
    double best = 1e9;
    for (int code = 0; code < 256; ++code) {
      const float value = e4m3_to_float(static_cast<std::uint8_t>(code));
      if (std::fabs(value - wanted) < std::fabs(best - wanted)) best = value;
    }
    const float value = step_of_code(CodeKind::e4m3, r.codes[k], 0);
    EXPECT_NEAR(std::fabs(value - wanted), std::fabs(best - wanted), 1e-5 * std::fabs(wanted)) << wanted;
  }
}

TEST(QuantizeInputs, ToE4m3TheNearestValuesOfEachRow) {
  const std::vector<float> x = normals(5, 97);
  std::vector<float> values(x.size());
  float scale = 0.0f;
  round_inputs_to_e4m3(x.data(), 97, values.data(), &scale);
  float largest = 0.0f;
  for (const float value : x) largest = std::max(largest, std::fabs(value));
  EXPECT_EQ(scale, largest / kE4m3Largest);
  for (std::size_t k = 0; k < x.size(); ++k) EXPECT_EQ(values[k], e4m3_to_float(float_to_e4m3(x[k] / scale)));
  const std::vector<float> zeros(97, 0.0f), bad(97, std::numeric_limits<float>::infinity());
  round_inputs_to_e4m3(zeros.data(), 97, values.data(), &scale);
  EXPECT_EQ(scale, 0.0f);
  EXPECT_EQ(values, zeros);
  round_inputs_to_e4m3(bad.data(), 97, values.data(), &scale);
  EXPECT_FALSE(std::isfinite(scale));
}

TEST(QuantizeRow, AGroupThatIsFarSmallerThanTheRowLosesNothingThatASumWouldKeep) {
  std::vector<float> weights(96, 0.0f);
  weights[0] = 1.0f;
  weights[40] = 0x1p-36f;
  weights[70] = 0x1p-60f;
  const Rounded r = round_row(kMxfp4, weights);
  EXPECT_EQ(r.values[0], 1.0f);
  EXPECT_EQ(r.values[40], 0x1p-36f);
  EXPECT_EQ(r.values[70], 0.0f);
}

TEST(QuantizeRow, ZerosStayZerosAndTinyOrHugeWeightsAreFinite) {
  for (const CodeFormat& format : all_formats()) {
    for (const float size : {0.0f, 1e-40f, 1e-10f, 1e30f, 1e38f}) {
      std::vector<float> weights(64, 0.0f);
      weights[3] = size;
      weights[40] = -size;
      const Rounded r = round_row(format, weights);
      for (std::size_t k = 0; k < weights.size(); ++k) {
        EXPECT_TRUE(std::isfinite(r.values[k]));
        EXPECT_TRUE(weights[k] != 0.0f || r.values[k] == 0.0f) << code_format_name(format) << ' ' << size;
      }
    }
  }
}

TEST(QuantizeInputs, NearestCodesOfEachRow) {
  const std::vector<float> x = normals(3, 97);
  std::vector<std::int8_t> codes(x.size());
  float scale = 0.0f;
  quantize_inputs(x.data(), 97, 0, codes.data(), &scale);
  float largest = 0.0f;
  for (const float value : x) largest = std::max(largest, std::fabs(value));
  EXPECT_EQ(scale, largest / 127.0f);
  for (std::size_t k = 0; k < x.size(); ++k) {
    EXPECT_LE(std::fabs(scale * static_cast<float>(codes[k]) - x[k]), 0.5001f * scale);
  }
}

TEST(QuantizeInputs, TiesGoToEvenAndZerosHaveNoScale) {
  const std::vector<float> x = {127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -127.0f};
  std::vector<std::int8_t> codes(x.size());
  float scale = 0.0f;
  quantize_inputs(x.data(), 7, 0, codes.data(), &scale);
  EXPECT_EQ(scale, 1.0f);
  EXPECT_EQ(codes, (std::vector<std::int8_t>{127, 0, 2, 2, 0, -2, -127}));
  const std::vector<float> zeros(7, 0.0f);
  quantize_inputs(zeros.data(), 7, 0, codes.data(), &scale);
  EXPECT_EQ(scale, 0.0f);
  EXPECT_EQ(codes, std::vector<std::int8_t>(7, 0));
}

TEST(QuantizeInputs, GroupsAreRoundedOnTheirOwn) {
  const std::vector<float> x = normals(4, 80);
  std::vector<std::int8_t> codes(x.size()), alone(32);
  std::vector<float> scales(3);
  quantize_inputs(x.data(), 80, 32, codes.data(), scales.data());
  for (std::size_t g = 0; g < 3; ++g) {
    const std::size_t first = 32 * g, count = std::min<std::size_t>(32, x.size() - first);
    float scale = 0.0f;
    quantize_inputs(x.data() + first, static_cast<std::int64_t>(count), 0, alone.data(), &scale);
    EXPECT_EQ(scales[g], scale);
    for (std::size_t k = 0; k < count; ++k) EXPECT_EQ(codes[first + k], alone[k]);
  }
}

TEST(QuantizeInputs, WhatIsNotFiniteShows) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    const std::vector<float> x = {1.0f, bad, 2.0f};
    std::vector<std::int8_t> codes(x.size(), 5);
    float scale = 0.0f;
    quantize_inputs(x.data(), 3, 0, codes.data(), &scale);
    EXPECT_FALSE(std::isfinite(scale));
  }
}

TEST(Float16, EveryHalfSurvivesAndNeighboursRoundToNearestEven) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = f16_to_float(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(f16_to_float(float_to_f16(value))));
      continue;
    }
    EXPECT_EQ(float_to_f16(value), half);
    // Between a half and the next one away from zero: below, at and above the middle.
    if ((bits & 0x7fff) >= 0x7bff) continue;
    const double next = f16_to_float(static_cast<std::uint16_t>(half + 1));
    const auto middle = static_cast<float>((value + next) / 2);  // exact in float
    EXPECT_EQ(float_to_f16(middle), (bits & 1) == 0 ? half : half + 1) << bits;
    EXPECT_EQ(float_to_f16(std::nextafter(middle, value)), half);
    EXPECT_EQ(float_to_f16(std::nextafter(middle, static_cast<float>(next))), half + 1);
  }
  EXPECT_EQ(float_to_f16(65519.9f), 0x7bff);
  EXPECT_EQ(float_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_f16(-1e30f), 0xfc00);
  EXPECT_EQ(float_to_f16(1e-30f), 0);
}

}  // namespace
}  // namespace millrace
