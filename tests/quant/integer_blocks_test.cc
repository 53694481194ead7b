// Blocks taken apart into integer codes and scales: put together again they are what the codec decodes, to the bit.
#include "quant/integer_blocks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "core/float16.h"
#include "quant/codec.h"
#include "quant/small_float.h"

namespace millrace {
namespace {

constexpr QuantFormat kFormats[] = {QuantFormat::q8_0, QuantFormat::q4_0,   QuantFormat::q4_1,  QuantFormat::q5_0,
                                    QuantFormat::q5_1, QuantFormat::q3_k,   QuantFormat::q4_k,  QuantFormat::q5_k,
                                    QuantFormat::q6_k, QuantFormat::iq4_nl, QuantFormat::iq4_xs};

bool same(float a, float b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) || (std::isnan(a) && std::isnan(b));
}

/// Any bytes are a block, with every scale there is: infinite, not a number, subnormal.
TEST(IntegerBlocks, AreWhatTheCodecDecodesToTheBit) {
  std::mt19937 engine(3);
  constexpr std::int64_t kCols = 2048;
  for (const QuantFormat format : kFormats) {
    SCOPED_TRACE(format_info(format).name);
    const auto parts = integer_blocks(format);
    ASSERT_TRUE(parts);
    const auto groups = static_cast<std::size_t>(kCols / parts->group),
               supers = static_cast<std::size_t>(kCols / parts->super);
    std::vector<std::int8_t> codes(kCols), factors(groups), minimum_factors(groups);
    std::vector<std::uint16_t> scales(supers), minimums(supers);
    std::vector<std::byte> row(format_bytes(format, kCols));
    std::vector<float> decoded(kCols);
    for (int round = 0; round < 200; ++round) {
      for (std::byte& byte : row) byte = static_cast<std::byte>(engine());
      split_row(format, row.data(), kCols,
                {codes.data(), scales.data(), minimums.data(), factors.data(), minimum_factors.data()});
      dequantize(format, row.data(), decoded.data(), kCols);
      for (std::size_t k = 0; k < kCols; ++k) {
        const std::size_t group = k / static_cast<std::size_t>(parts->group),
                          super = k / static_cast<std::size_t>(parts->super);
        float scale = f16_to_float(scales[super]), minimum = f16_to_float(minimums[super]);
        if (parts->factors()) {
          scale *= factors[group];
          minimum *= minimum_factors[group];
        }
        if (parts->kind == CodeKind::int4) {
          ASSERT_GE(codes[k], 0);
          ASSERT_LE(codes[k], 15);
        }
        float value = scale * static_cast<float>(codes[k] - parts->zero);
        if (parts->minimums) value += minimum;
        ASSERT_TRUE(same(value, decoded[k])) << k << ": " << value << " and " << decoded[k];
      }
    }
  }
}

struct SplitMxfp4 {
  std::vector<std::int8_t> codes;
  std::vector<std::uint16_t> scales;
  float row_scale = 0.0f;
  std::vector<float> values;

  explicit SplitMxfp4(const std::vector<std::byte>& row) : codes(row.size() / 17 * 32), scales(row.size() / 17) {
    split_row(QuantFormat::mxfp4, row.data(), static_cast<std::int64_t>(codes.size()),
              {.codes = codes.data(), .scales = scales.data(), .row_scale = &row_scale});
    for (std::size_t k = 0; k < codes.size(); ++k) {
      values.push_back(static_cast<float>(kE2m1Steps[codes[k]]) * f16_to_float(scales[k / 32]) * row_scale);
    }
  }
};

/// Exponents that a half has room for beside each other, wherever they lie; and blocks of zeros with any.
TEST(IntegerBlocks, Mxfp4WithinFortyPowersOfTwoIsExact) {
  std::mt19937 engine(4);
  for (int round = 0; round < 400; ++round) {
    std::vector<std::byte> row(17 * 24);
    for (std::byte& byte : row) byte = static_cast<std::byte>(engine());
    const int top = 39 + static_cast<int>(engine() % 217);
    for (std::size_t block = 0; block < row.size(); block += 17) {
      if (engine() % 8 == 0) {
        std::fill_n(row.begin() + static_cast<std::ptrdiff_t>(block) + 1, 16, static_cast<std::byte>(0x80));
      } else {
        row[block] = static_cast<std::byte>(top - static_cast<int>(engine() % 40));
      }
    }
    std::vector<float> decoded(24 * 32);
    dequantize(QuantFormat::mxfp4, row.data(), decoded.data(), decoded.size());
    const SplitMxfp4 split(row);
    for (std::size_t k = 0; k < decoded.size(); ++k) {
      ASSERT_EQ(split.values[k], decoded[k]) << k << ", exponent " << std::to_integer<int>(row[k / 32 * 17]);
    }
  }
}

TEST(IntegerBlocks, Mxfp4BeyondThatLosesWhatASumWouldLose) {
  std::mt19937 engine(5);
  for (int round = 0; round < 400; ++round) {
    std::vector<std::byte> row(17 * 24);
    for (std::byte& byte : row) byte = static_cast<std::byte>(engine());
    for (std::size_t block = 0; block < row.size(); block += 17) row[block] &= std::byte{0x7f};  // finite sums
    std::vector<float> decoded(24 * 32);
    dequantize(QuantFormat::mxfp4, row.data(), decoded.data(), decoded.size());
    float largest = 0.0f;
    for (const float value : decoded) largest = std::max(largest, std::fabs(value));
    const SplitMxfp4 split(row);
    for (std::size_t k = 0; k < decoded.size(); ++k) {
      ASSERT_LE(std::fabs(split.values[k] - decoded[k]), std::ldexp(largest, -36)) << k;
    }
  }
}

TEST(IntegerBlocks, OthersAreNone) {
  for (const QuantFormat format :
       {QuantFormat::f32, QuantFormat::f16, QuantFormat::bf16, QuantFormat::q2_k, QuantFormat::u8}) {
    EXPECT_FALSE(integer_blocks(format)) << format_info(format).name;
  }
}

}  // namespace
}  // namespace millrace
