// Weights rounded for a file: every code is the nearest, every scale one that the file can hold.
#include "convert/code_grid.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "core/check.h"
#include "core/float16.h"
#include "quant/small_float.h"

namespace millrace {
namespace {

constexpr CodeFormat kFormats[] = {{},
                                   {CodeKind::int4, 32, false},
                                   {CodeKind::int4, 64, true},
                                   {CodeKind::e2m1, 16, true},
                                   {CodeKind::e2m1, 32, true},
                                   {CodeKind::e4m3, 0, true}};

std::vector<float> normals(std::uint32_t seed, std::size_t count) {
  std::mt19937 engine(seed);
  std::vector<float> values(count);
  for (float& value : values) value = std::normal_distribution<float>(0.0f, 0.05f)(engine);
  return values;
}

bool is_of(ScaleType type, float scale) {
  if (type == ScaleType::bf16) return bf16_to_float(float_to_bf16(scale)) == scale;
  return type == ScaleType::f32 || f16_to_float(float_to_f16(scale)) == scale;
}

float largest_of(const std::vector<float>& weights) {
  float largest = 0.0f;
  for (const float weight : weights) largest = std::max(largest, std::fabs(weight));
  return largest;
}

TEST(CodeGrid, TakesTheNearestCodeOfItsGroup) {
  const auto pool = ThreadPool::create(2);
  ASSERT_TRUE(pool.ok());
  constexpr std::int64_t kRows = 10, kCols = 192;
  for (const CodeFormat& format : kFormats) {
    for (const ScaleType type : {ScaleType::f32, ScaleType::f16, ScaleType::bf16}) {
      std::vector<float> weights = normals(3, kRows * kCols);
      std::fill_n(weights.begin(), kCols, 0.0f);  // an output of zeros
      const float unit = tensor_unit(format, largest_of(weights));
      const CodedRows coded = round_to_nearest(format, type, unit, weights.data(), kRows, kCols, **pool);
      for (std::int64_t r = 0; r < kRows; ++r) {
        for (std::int64_t k = 0; k < kCols; ++k) {
          const auto place = static_cast<std::size_t>(r * coded.groups() + (format.group == 0 ? 0 : k / format.group));
          const GroupGrid grid{coded.scales[place], coded.zeros[place]};
          const float weight = weights[static_cast<std::size_t>(r * kCols + k)];
          float best = std::numeric_limits<float>::infinity();
          for (int code = -128; code < 128; ++code) {
            if (format.four_bits() && (code < 0 || code > 15)) continue;
            if (format.kind == CodeKind::int8 && code == -128) continue;
            if (format.kind == CodeKind::e4m3 && (code & 0x7f) == 0x7f) continue;
            best = std::min(best, std::fabs(grid.value(format.kind, static_cast<std::int8_t>(code), unit) - weight));
          }
          EXPECT_NEAR(std::fabs(coded.value(r, k) - weight), best, 1e-6f * std::fabs(weight))
              << code_format_name(format) << ' ' << r << ' ' << k;
        }
      }
      for (const float scale : coded.scales) {
        if (format.kind == CodeKind::e2m1) {
          EXPECT_EQ(format.group == 16 ? e4m3_to_float(float_to_e4m3(scale)) : std::exp2(std::round(std::log2(scale))),
                    scale);
        } else {
          EXPECT_TRUE(is_of(type, scale)) << code_format_name(format) << ' ' << scale;
        }
      }
    }
  }
}

TEST(CodeGrid, NothingIsCutOffWhereTheFormatReachesBothEnds) {
  const std::vector<float> weights = normals(4, 128);
  for (const ScaleType type : {ScaleType::f32, ScaleType::f16, ScaleType::bf16}) {
    for (const CodeFormat& format : {CodeFormat{}, CodeFormat{CodeKind::e4m3, 0, true}}) {
      const GroupGrid grid = grid_of(format, type, 1.0f, weights.data(), 128);
      const float end = format.kind == CodeKind::int8 ? 127.0f : kE4m3Largest;
      EXPECT_GE(grid.scale * end, largest_of(weights) * (1.0f - 1e-6f));
      EXPECT_LE(grid.scale * end, largest_of(weights) * 1.01f);
    }
  }
}

TEST(CodeGrid, TheLargestScaleOfNvfp4IsTheLargestE4m3) {
  const std::vector<float> weights = normals(5, 16);
  const CodeFormat nvfp4{CodeKind::e2m1, 16, true};
  const float unit = tensor_unit(nvfp4, largest_of(weights));
  EXPECT_EQ(grid_of(nvfp4, ScaleType::bf16, unit, weights.data(), 16).scale, kE4m3Largest);
  EXPECT_EQ(tensor_unit(nvfp4, 0.0f), 1.0f);
  EXPECT_EQ(tensor_unit({CodeKind::e2m1, 32, true}, 3.0f), 1.0f);
}

}  // namespace
}  // namespace millrace
