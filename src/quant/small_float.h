// Floats of 8 and 4 bits. Scalar and exact.
//
// FP8 E4M3 (the "FN" variant without infinities): a sign, four bits of exponent with bias 7, three of mantissa. Values
// to 448, subnormals from 2^-9, both codes with all other bits set are NaN. FP8 E5M2: the upper byte of a half, so five
// bits of exponent with bias 15, two of mantissa, infinities and NaN. Source of both: OCP 8-bit Floating Point
// Specification 1.0. FP4 E2M1: a sign, two bits of exponent, one of mantissa. Source: OCP Microscaling Formats 1.0.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace millrace {

/// Twice the value of each code of E2M1: whole numbers, without a negative zero.
inline constexpr std::int8_t kE2m1Steps[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

inline constexpr float kE4m3Largest = 448.0f;

inline float e4m3_to_float(std::uint8_t code) {
  const int exponent = (code >> 3) & 15, mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                        : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

/// The nearest value, ties to even; what lies beyond the largest, infinity too, becomes the largest.
inline std::uint8_t float_to_e4m3(float value) {
  if (std::isnan(value)) return 0x7f;
  const auto sign = static_cast<std::uint8_t>(std::signbit(value) ? 0x80 : 0);
  const float magnitude = std::fabs(value);
  if (magnitude >= kE4m3Largest) return sign | 0x7e;
  // A unit in the last place; where the mantissa rounds up to the next power of two, the code carries into the
  // exponent.
  const int exponent = magnitude < 0x1p-6f ? -6 : std::ilogb(magnitude);
  const auto units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 3 - exponent)));
  const int code = units + (exponent == -6 ? 0 : (exponent + 6) * 8);
  return static_cast<std::uint8_t>(sign | (code < 0x7e ? code : 0x7e));
}

inline constexpr float kE5m2Largest = 57344.0f;

inline float e5m2_to_float(std::uint8_t code) {
  const int exponent = (code >> 2) & 31, mantissa = code & 3;
  if (exponent == 31 && mantissa != 0) return std::numeric_limits<float>::quiet_NaN();
  float magnitude = std::numeric_limits<float>::infinity();
  if (exponent < 31) {
    magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -16)
                              : std::ldexp(static_cast<float>(4 + mantissa), exponent - 17);
  }
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

/// As float_to_e4m3(): what lies beyond the largest, infinity too, becomes the largest, and no infinity is written.
inline std::uint8_t float_to_e5m2(float value) {
  if (std::isnan(value)) return 0x7e;
  const auto sign = static_cast<std::uint8_t>(std::signbit(value) ? 0x80 : 0);
  const float magnitude = std::fabs(value);
  if (magnitude >= kE5m2Largest) return sign | 0x7b;
  const int exponent = magnitude < 0x1p-14f ? -14 : std::ilogb(magnitude);
  const auto units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 2 - exponent)));
  const int code = units + (exponent == -14 ? 0 : (exponent + 14) * 4);
  return static_cast<std::uint8_t>(sign | (code < 0x7b ? code : 0x7b));
}

}  // namespace millrace
