// Keys and values to memory and back, in each format.
#include "quant/kv_codec.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "core/float16.h"

namespace millrace {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();

/// A head of numbers, elements `step` bytes apart.
struct Stored {
  std::vector<std::byte> memory;
  float scale = -1.0f, middle = -1.0f;
  KvFormat format;
  KvSlot slot;

  Stored(KvFormat f, const std::vector<float>& numbers, std::ptrdiff_t step = 1)
      : memory(4 * numbers.size() * static_cast<std::size_t>(step), std::byte{0xa5}), format(f) {
    slot = {memory.data(), step * static_cast<std::ptrdiff_t>(kv_element_bytes(f)), &scale, &middle};
    encode_kv(f, numbers.data(), static_cast<std::int64_t>(numbers.size()), slot);
  }
  [[nodiscard]] float at(std::size_t i) const { return decode_kv(format, slot, static_cast<std::int64_t>(i)); }
};

std::vector<float> normals(std::size_t count, float deviation) {
  std::mt19937 engine(7);
  std::normal_distribution<float> distribution(0.5f, deviation);
  std::vector<float> numbers(count);
  for (float& number : numbers) number = distribution(engine);
  return numbers;
}

TEST(KvCodec, NumbersAreOffByHalfAStepAtMost) {
  for (const KvFormat format : kKvFormats) {
    for (const float deviation : {1e-3f, 1.0f, 50.0f}) {
      for (const std::size_t count : {1u, 2u, 7u, 64u}) {
        for (const std::ptrdiff_t step : {1, 16}) {
          const std::vector<float> x = normals(count, deviation);
          const Stored stored(format, x, step);
          float largest = 0.0f;
          for (const float number : x) largest = std::max(largest, std::fabs(number));
          for (std::size_t i = 0; i < count; ++i) {
            float bound = 0.0f;  // f32
            if (format == KvFormat::bf16) bound = std::fabs(x[i]) * 0x1p-8f;
            if (format == KvFormat::int8) bound = stored.scale * 0.5001f;
            if (format == KvFormat::fp8_e4m3) bound = std::max(std::fabs(x[i]) * 0x1.001p-4f, stored.scale * 0x1p-10f);
            if (format == KvFormat::fp8_e4m3_unscaled) bound = std::max(std::fabs(x[i]) * 0x1p-4f, 0x1p-10f);
            if (format == KvFormat::fp8_e5m2) bound = std::max(std::fabs(x[i]) * 0x1p-3f, 0x1p-17f);
            if (format == KvFormat::int4) bound = stored.scale * 0.5001f + largest * 1e-6f;
            EXPECT_NEAR(stored.at(i), x[i], bound) << kv_format_name(format) << ' ' << i << " of " << count;
          }
        }
      }
    }
  }
}

TEST(KvCodec, EveryCodeOfEightBitsComesBack) {
  for (const KvFormat format : {KvFormat::fp8_e4m3_unscaled, KvFormat::fp8_e5m2}) {
    for (int code = 0; code < 256; ++code) {
      std::byte byte{static_cast<unsigned char>(code)};
      const float value = decode_kv(format, {&byte, 1, nullptr, nullptr}, 0);
      const Stored again(format, {value});
      if (std::isnan(value)) {
        EXPECT_TRUE(std::isnan(again.at(0))) << code;
      } else if (std::isinf(value)) {
        EXPECT_EQ(again.at(0), std::copysign(57344.0f, value)) << "none is written";
      } else {
        EXPECT_EQ(again.memory[0], byte) << kv_format_name(format);
      }
    }
  }
}

TEST(KvCodec, WhatDoesNotFitWithoutAScaleBecomesTheLargest) {
  for (const auto& [format, largest] :
       {std::pair{KvFormat::fp8_e4m3_unscaled, 448.0f}, {KvFormat::fp8_e5m2, 57344.0f}}) {
    const Stored stored(format, {1e6f, -3e38f, kInfinity, -kInfinity, kNan, 1.0f});
    for (const std::size_t i : {0u, 2u}) EXPECT_EQ(stored.at(i), largest);
    for (const std::size_t i : {1u, 3u}) EXPECT_EQ(stored.at(i), -largest);
    EXPECT_TRUE(std::isnan(stored.at(4)));
    EXPECT_EQ(stored.at(5), 1.0f);
    EXPECT_EQ(stored.scale, -1.0f) << "untouched";
  }
}

TEST(KvCodec, AllCodesOfFourBits) {
  std::vector<float> x(16);
  for (int i = 0; i < 16; ++i) x[static_cast<std::size_t>(i)] = 3.0f + 0.25f * static_cast<float>(15 - i);
  const Stored stored(KvFormat::int4, x);
  EXPECT_EQ(stored.scale, 0.25f);
  EXPECT_EQ(stored.middle, 5.0f);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(std::to_integer<int>(stored.memory[static_cast<std::size_t>(i / 2)]) >> (i % 2 * 4) & 15, 15 - i);
    EXPECT_EQ(stored.at(static_cast<std::size_t>(i)), x[static_cast<std::size_t>(i)]);
  }
}

TEST(KvCodec, FourBitsTieToTheEvenCode) {
  const Stored stored(KvFormat::int4, {0.0f, 15.0f, 0.5f, 1.5f, 2.5f, 13.5f, 14.5f, 7.499f});
  const float expected[] = {0, 15, 0, 2, 2, 14, 14, 7};
  for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(stored.at(i), expected[i]);
}

TEST(KvCodec, FourBitsOfAnOddNumberOfNumbersFillTheLastUp) {
  const Stored stored(KvFormat::int4, {1.0f, 4.0f, 4.0f}, 2);
  EXPECT_EQ(stored.memory[0], std::byte{0xf0});
  EXPECT_EQ(stored.memory[1], std::byte{0xa5}) << "between elements";
  EXPECT_EQ(stored.memory[2], std::byte{0x0f});
  EXPECT_EQ(stored.memory[4], std::byte{0xa5});
}

TEST(KvCodec, FourBitsOfOneNumberAreExact) {
  for (const float number : {0.0f, -0.3f, 1e30f}) {
    const Stored stored(KvFormat::int4, std::vector<float>(5, number));
    EXPECT_EQ(stored.scale, 0.0f);
    for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(stored.at(i), number);
  }
}

TEST(KvCodec, WhatIsNotFiniteShows) {
  for (const KvFormat format : {KvFormat::int8, KvFormat::fp8_e4m3, KvFormat::int4}) {
    for (const float bad : {kNan, kInfinity, -kInfinity}) {
      const Stored stored(format, {1.0f, 2.0f, bad, 3.0f});
      for (std::size_t i = 0; i < 4; ++i) EXPECT_FALSE(std::isfinite(stored.at(i))) << kv_format_name(format);
    }
  }
}

TEST(KvFormats, NamesAndSizes) {
  for (const KvFormat format : kKvFormats) EXPECT_EQ(kv_format_from_name(kv_format_name(format)), format);
  EXPECT_FALSE(kv_format_from_name("fp8"));
  EXPECT_EQ(kv_format_names(kKvFormats), "f32, bf16, int8, fp8_e4m3, fp8_e4m3.unscaled, fp8_e5m2 and int4");
  const std::size_t expected[] = {512, 256, 132, 132, 128, 128, 72};
  for (const KvFormat format : kKvFormats) {
    EXPECT_EQ(kv_head_bytes(format, 128), expected[static_cast<std::size_t>(format)]);
  }
  EXPECT_EQ(kv_elements(KvFormat::int4, 7), 4u);
}

TEST(KvBound, IsTheNearestBfloat16OnItsSide) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 200000; ++trial) {
    const float number = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (!std::isfinite(number)) continue;
    const float above = bf16_to_float(kv_bound(number, true)), below = bf16_to_float(kv_bound(number, false));
    constexpr float kLargest = 0x1.fep127f;
    EXPECT_TRUE(std::isfinite(above) && std::isfinite(below)) << number;
    EXPECT_TRUE(above >= number || number > kLargest) << number;
    EXPECT_TRUE(below <= number || number < -kLargest) << number;
    const float nearest = round_to_bf16(number);
    EXPECT_TRUE(above == nearest || below == nearest || std::isinf(nearest)) << number;
    EXPECT_TRUE((above == below) == (number == nearest) || std::fabs(number) > kLargest) << number;
  }
  for (const bool up : {false, true}) {
    EXPECT_EQ(kv_bound(kInfinity, up), 0x7f7f);
    EXPECT_EQ(kv_bound(-kInfinity, up), 0xff7f);
    EXPECT_EQ(bf16_to_float(kv_bound(0.0f, up)), 0.0f);
  }
}

}  // namespace
}  // namespace millrace
