#include "quant/integer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "core/float16.h"

namespace millrace {

namespace {

constexpr std::array<std::int32_t, 3> kGroups = {32, 64, 128};

/// Nearest integer, ties to even, within [low, high].
std::int32_t nearest(float value, std::int32_t low, std::int32_t high) {
  const float rounded = std::nearbyint(value);
  return static_cast<std::int32_t>(std::clamp(rounded, static_cast<float>(low), static_cast<float>(high)));
}

/// A scale as it is stored beside 4-bit codes. Rounded up, so that no value is cut off at the ends.
float half_scale(float scale) {
  constexpr float kLargest = 65504.0f;
  std::uint16_t bits = float_to_f16(std::min(scale, kLargest));
  if (f16_to_float(bits) < std::min(scale, kLargest)) ++bits;
  return f16_to_float(bits);
}

void quantize_group(const IntegerFormat& format, const float* weights, std::int64_t count, std::int8_t* codes,
                    float& scale, std::uint8_t& zero) {
  float low = 0.0f, high = 0.0f;
  for (std::int64_t k = 0; k < count; ++k) {
    low = std::min(low, weights[k]);
    high = std::max(high, weights[k]);
  }
  const float largest = std::max(-low, high);
  std::int32_t first = 0, last = 15, offset = 0;  // of the codes
  if (format.bits == 8) {
    scale = largest / 127.0f;
    first = -127;
    last = 127;
  } else if (format.symmetric) {
    // The 16 codes reach from -8 to 7; a scale between largest / 8 and largest / 7 spreads the loss over both ends.
    scale = half_scale(largest / 7.5f);
    offset = kSymmetricZero;
  } else {
    scale = half_scale((high - low) / 15.0f);
    offset = scale > 0.0f ? nearest(-low / scale, 0, 15) : 0;
  }
  zero = static_cast<std::uint8_t>(offset);
  for (std::int64_t k = 0; k < count; ++k) {
    const std::int32_t code =
        scale > 0.0f ? nearest(weights[k] / scale, first - offset, last - offset) + offset : offset;
    codes[k] = static_cast<std::int8_t>(code);
  }
}

float quantize_input_group(const float* x, std::int64_t cols, std::int8_t* codes) {
  float largest = 0.0f;
  for (std::int64_t k = 0; k < cols; ++k) {
    if (!std::isfinite(x[k])) {
      std::fill_n(codes, cols, std::int8_t{0});
      return std::numeric_limits<float>::quiet_NaN();
    }
    largest = std::max(largest, std::fabs(x[k]));
  }
  const float scale = largest / 127.0f;
  for (std::int64_t k = 0; k < cols; ++k) {
    codes[k] = scale > 0.0f ? static_cast<std::int8_t>(nearest(x[k] / scale, -127, 127)) : std::int8_t{0};
  }
  return scale;
}

}  // namespace

std::optional<IntegerFormat> integer_format_from_name(std::string_view name) {
  if (name == "int8") return IntegerFormat{};
  if (!name.starts_with("int4")) return std::nullopt;
  name.remove_prefix(4);
  IntegerFormat format{.bits = 4, .group = 128, .symmetric = false};
  for (const std::int32_t group : kGroups) {
    const std::string suffix = ".g" + std::to_string(group);
    if (name == suffix || name.starts_with(suffix + '.')) {
      format.group = group;
      name.remove_prefix(suffix.size());
      break;
    }
  }
  if (name == ".sym") {
    format.symmetric = true;
    name = {};
  }
  if (!name.empty()) return std::nullopt;
  return format;
}

std::string integer_format_name(const IntegerFormat& format) {
  if (format.bits == 8) return "int8";
  return "int4.g" + std::to_string(format.group) + (format.symmetric ? ".sym" : "");
}

void quantize_row(const IntegerFormat& format, const float* weights, std::int64_t cols, const IntegerRow& target) {
  const std::int64_t step = format.group == 0 ? cols : format.group;
  for (std::int64_t g = 0; g * step < cols; ++g) {
    const std::int64_t first = g * step;
    quantize_group(format, weights + first, std::min(step, cols - first), target.codes + first, target.scales[g],
                   target.zeros[g]);
  }
}

void quantize_inputs(const float* x, std::int64_t cols, std::int64_t group, std::int8_t* codes, float* scales) {
  const std::int64_t step = group == 0 ? cols : group;
  for (std::int64_t first = 0; first < cols; first += step) {
    *scales++ = quantize_input_group(x + first, std::min(step, cols - first), codes + first);
  }
}

}  // namespace millrace
