// Every code, and every value between two of them, against the definition.
#include "quant/small_float.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "core/float16.h"

namespace millrace {
namespace {

/// (-1)^s * 2^(e - bias) * 1.m, or (-1)^s * 2^(1 - bias) * 0.m where e is 0.
double defined(int code, int exponent_bits, int mantissa_bits, int bias) {
  const int sign = code >> (exponent_bits + mantissa_bits), mantissa = code & ((1 << mantissa_bits) - 1),
            exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const double fraction = mantissa / std::pow(2.0, mantissa_bits);
  const double magnitude =
      exponent == 0 ? std::pow(2.0, 1 - bias) * fraction : std::pow(2.0, exponent - bias) * (1.0 + fraction);
  return sign != 0 ? -magnitude : magnitude;
}

bool is_nan_code(int code) {
  return (code & 0x7f) == 0x7f;
}

TEST(E4m3, EveryCodeIsWhatItIsDefinedToBe) {
  for (int code = 0; code < 256; ++code) {
    const float value = e4m3_to_float(static_cast<std::uint8_t>(code));
    if (is_nan_code(code)) {
      EXPECT_TRUE(std::isnan(value)) << code;
      continue;
    }
    EXPECT_EQ(value, defined(code, 4, 3, 7)) << code;
    EXPECT_EQ(std::signbit(value), code >= 128) << code;
    EXPECT_EQ(float_to_e4m3(value), code);
  }
  EXPECT_EQ(e4m3_to_float(0x7e), kE4m3Largest);
}

TEST(E4m3, WhatLiesBetweenGoesToTheNearestAndTiesToTheEvenCode) {
  for (int code = 0; code < 0x7e; ++code) {
    const float low = e4m3_to_float(static_cast<std::uint8_t>(code)),
                high = e4m3_to_float(static_cast<std::uint8_t>(code + 1)), middle = (low + high) / 2;
    EXPECT_EQ(float_to_e4m3(middle), code % 2 == 0 ? code : code + 1) << middle;
    EXPECT_EQ(float_to_e4m3(std::nextafter(middle, low)), code) << middle;
    EXPECT_EQ(float_to_e4m3(std::nextafter(middle, high)), code + 1) << middle;
    EXPECT_EQ(float_to_e4m3(-std::nextafter(middle, high)), code + 129) << middle;
  }
}

TEST(E4m3, WhatDoesNotFit) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float value : {449.0f, 1e30f, kInfinity}) {
    EXPECT_EQ(float_to_e4m3(value), 0x7e);
    EXPECT_EQ(float_to_e4m3(-value), 0xfe);
  }
  for (const float value : {0.0f, 1e-45f, 0x1p-10f}) {
    EXPECT_EQ(float_to_e4m3(value), 0);
    EXPECT_EQ(float_to_e4m3(-value), 0x80);
  }
  EXPECT_TRUE(is_nan_code(float_to_e4m3(std::numeric_limits<float>::quiet_NaN())));
}

TEST(E5m2, EveryCodeIsWhatItIsDefinedToBeAndTheUpperByteOfAHalf) {
  for (int code = 0; code < 256; ++code) {
    const float value = e5m2_to_float(static_cast<std::uint8_t>(code));
    const float half = f16_to_float(static_cast<std::uint16_t>(code << 8));
    if ((code & 0x7f) > 0x7c) {
      EXPECT_TRUE(std::isnan(value) && std::isnan(half)) << code;
      continue;
    }
    EXPECT_EQ(value, half) << code;
    EXPECT_EQ(std::signbit(value), code >= 128) << code;
    if ((code & 0x7f) == 0x7c) {
      EXPECT_TRUE(std::isinf(value));
      continue;
    }
    EXPECT_EQ(value, defined(code, 5, 2, 15)) << code;
    EXPECT_EQ(float_to_e5m2(value), code);
  }
  EXPECT_EQ(e5m2_to_float(0x7b), kE5m2Largest);
}

TEST(E5m2, WhatLiesBetweenGoesToTheNearestAndTiesToTheEvenCode) {
  for (int code = 0; code < 0x7b; ++code) {
    const float low = e5m2_to_float(static_cast<std::uint8_t>(code)),
                high = e5m2_to_float(static_cast<std::uint8_t>(code + 1)), middle = (low + high) / 2;
    EXPECT_EQ(float_to_e5m2(middle), code % 2 == 0 ? code : code + 1) << middle;
    EXPECT_EQ(float_to_e5m2(std::nextafter(middle, low)), code) << middle;
    EXPECT_EQ(float_to_e5m2(std::nextafter(middle, high)), code + 1) << middle;
    EXPECT_EQ(float_to_e5m2(-std::nextafter(middle, high)), code + 129) << middle;
  }
}

TEST(E5m2, WhatDoesNotFit) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float value : {57345.0f, 65504.0f, 1e30f, kInfinity}) {
    EXPECT_EQ(float_to_e5m2(value), 0x7b);
    EXPECT_EQ(float_to_e5m2(-value), 0xfb);
  }
  for (const float value : {0.0f, 1e-45f, 0x1p-17f}) {
    EXPECT_EQ(float_to_e5m2(value), 0);
    EXPECT_EQ(float_to_e5m2(-value), 0x80);
  }
  EXPECT_EQ(float_to_e5m2(std::numeric_limits<float>::quiet_NaN()), 0x7e);
}

TEST(E2m1, TheStepsAreTwiceTheValues) {
  for (int code = 0; code < 16; ++code) EXPECT_EQ(kE2m1Steps[code], 2.0 * defined(code, 2, 1, 1)) << code;
}

}  // namespace
}  // namespace millrace
