#include "quant/codes.h"

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

void quantize_group(const CodeFormat& format, const float* weights, std::int64_t count, std::int8_t* codes,
                    float& scale, std::uint8_t& zero) {
  float low = 0.0f, high = 0.0f;
  for (std::int64_t k = 0; k < count; ++k) {
    low = std::min(low, weights[k]);
    high = std::max(high, weights[k]);
  }
  const float largest = std::max(-low, high);
  zero = 0;
  if (format.kind == CodeKind::int8) {
    scale = largest / 127.0f;
  } else if (format.symmetric) {
    // The 16 codes reach from -8 to 7; a scale between largest / 8 and largest / 7 spreads the loss over both ends.
    scale = half_scale(largest / 7.5f);
    zero = kSymmetricZero;
  } else {
    scale = half_scale((high - low) / 15.0f);
    zero = scale > 0.0f ? static_cast<std::uint8_t>(nearest(-low / scale, 0, 15)) : std::uint8_t{0};
  }
  for (std::int64_t k = 0; k < count; ++k) {
    codes[k] = nearest_code(format.kind, scale > 0.0f ? weights[k] / scale : 0.0f, zero);
  }
}

/// The code of E2M1 nearest to `value`, ties to the even one; beyond 6 that of 6.
std::int8_t nearest_e2m1(float value) {
  const float magnitude = std::fabs(value);
  // The middles between neighbours; at a middle the even code, that is the one with an even mantissa.
  constexpr std::array<float, 7> kMiddles = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
  std::size_t code = 0;
  while (code < kMiddles.size() && (magnitude > kMiddles[code] || (magnitude == kMiddles[code] && code % 2 == 1))) {
    ++code;
  }
  return static_cast<std::int8_t>(std::signbit(value) && code != 0 ? code + 8 : code);
}

float largest_magnitude(const float* values, std::int64_t count) {
  float largest = 0.0f;
  for (std::int64_t k = 0; k < count; ++k) largest = std::max(largest, std::fabs(values[k]));
  return largest;
}

/// The exponent of a group's scale: that of its largest weight less that of 6, the largest code.
int shared_exponent(float largest) {
  return std::ilogb(largest) - 2;
}

/// A row scale that takes the largest weight to the largest code with the largest scale (NVFP4), or the largest power
/// of two of a group to the largest that a half holds (MXFP4). Half of it, as the steps are twice the values.
float e2m1_row_scale(const CodeFormat& format, float largest) {
  constexpr int kLargestPower = 15, kSmallest = -125;  // of a half; of what a float holds with all its digits
  if (largest == 0.0f) return 0.0f;
  if (format.group == 16) return largest / (12.0f * kE4m3Largest);
  return std::ldexp(1.0f, std::max(shared_exponent(largest) - 1 - kLargestPower, kSmallest));
}

float e2m1_scale(const CodeFormat& format, float largest, float row_scale) {
  if (largest == 0.0f || row_scale == 0.0f) return 0.0f;
  if (format.group == 16) return e4m3_to_float(float_to_e4m3(largest / 12.0f / row_scale));
  constexpr int kSmallestPower = -24;  // of a half
  const int power = shared_exponent(largest) - 1 - std::ilogb(row_scale);
  return power < kSmallestPower ? 0.0f : std::ldexp(1.0f, power);
}

void quantize_e2m1_row(const CodeFormat& format, const float* weights, std::int64_t cols, const CodeRow& target) {
  *target.row_scale = e2m1_row_scale(format, largest_magnitude(weights, cols));
  for (std::int64_t first = 0, g = 0; first < cols; first += format.group, ++g) {
    const std::int64_t count = std::min<std::int64_t>(format.group, cols - first);
    target.zeros[g] = 0;
    target.scales[g] = e2m1_scale(format, largest_magnitude(weights + first, count), *target.row_scale);
    const float unit = 2.0f * *target.row_scale * target.scales[g];
    for (std::int64_t k = first; k < first + count; ++k) {
      target.codes[k] = unit > 0.0f ? nearest_e2m1(weights[k] / unit) : std::int8_t{0};
    }
  }
}

void quantize_e4m3_row(const float* weights, std::int64_t cols, const CodeRow& target) {
  *target.zeros = 0;
  *target.scales = largest_magnitude(weights, cols) / kE4m3Largest;
  for (std::int64_t k = 0; k < cols; ++k) {
    const float value = *target.scales > 0.0f ? weights[k] / *target.scales : 0.0f;
    target.codes[k] = static_cast<std::int8_t>(float_to_e4m3(value));
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

std::optional<CodeFormat> code_format_from_name(std::string_view name) {
  if (constexpr std::string_view kFloatInputs = ".a16"; name.ends_with(kFloatInputs)) {
    name.remove_suffix(kFloatInputs.size());
    std::optional<CodeFormat> format = name.ends_with(kFloatInputs) ? std::nullopt : code_format_from_name(name);
    if (format) format->float_inputs = true;
    return format;
  }
  if (name == "int8") return CodeFormat{};
  if (name == "fp8_e4m3") return CodeFormat{.kind = CodeKind::e4m3};
  if (name == "nvfp4") return CodeFormat{.kind = CodeKind::e2m1, .group = 16};
  if (name == "mxfp4") return CodeFormat{.kind = CodeKind::e2m1, .group = 32};
  if (!name.starts_with("int4")) return std::nullopt;
  name.remove_prefix(4);
  CodeFormat format{.kind = CodeKind::int4, .group = 128, .symmetric = false};
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

std::string code_format_name(const CodeFormat& format) {
  std::string name;
  switch (format.kind) {
    case CodeKind::int8:
      name = "int8";
      break;
    case CodeKind::int4:
      name = "int4.g" + std::to_string(format.group) + (format.symmetric ? ".sym" : "");
      break;
    case CodeKind::e2m1:
      name = format.group == 16 ? "nvfp4" : "mxfp4";
      break;
    case CodeKind::e4m3:
      name = "fp8_e4m3";
      break;
  }
  return format.float_inputs ? name + ".a16" : name;
}

std::int8_t nearest_code(CodeKind kind, float value, std::uint8_t zero) {
  switch (kind) {
    case CodeKind::int8:
      return static_cast<std::int8_t>(nearest(value, -127, 127));
    case CodeKind::int4:
      return static_cast<std::int8_t>(nearest(value, -zero, 15 - zero) + zero);
    case CodeKind::e2m1:
      return nearest_e2m1(value);
    case CodeKind::e4m3:
      break;
  }
  return static_cast<std::int8_t>(float_to_e4m3(value));
}

void quantize_row(const CodeFormat& format, const float* weights, std::int64_t cols, const CodeRow& target) {
  if (format.kind == CodeKind::e2m1) return quantize_e2m1_row(format, weights, cols, target);
  if (target.row_scale != nullptr) *target.row_scale = 1.0f;
  if (format.kind == CodeKind::e4m3) return quantize_e4m3_row(weights, cols, target);
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

void round_inputs_to_e4m3(const float* x, std::int64_t cols, float* values, float* scale) {
  bool finite = true;
  for (std::int64_t k = 0; k < cols; ++k) finite = finite && std::isfinite(x[k]);
  *scale = finite ? largest_magnitude(x, cols) / kE4m3Largest : std::numeric_limits<float>::quiet_NaN();
  for (std::int64_t k = 0; k < cols; ++k) {
    values[k] = *scale > 0.0f ? e4m3_to_float(float_to_e4m3(x[k] / *scale)) : 0.0f;
  }
}

}  // namespace millrace
