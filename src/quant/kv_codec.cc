#include "quant/kv_codec.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/float16.h"
#include "quant/codes.h"
#include "quant/small_float.h"

namespace millrace {

namespace {

constexpr float kSteps = 15.0f, kMiddle = 8.0f;  // of int4: from the least code to the largest, and what is taken off

void encode_int4(const float* x, std::int64_t count, const KvSlot& slot) {
  float low = x[0], high = x[0];
  bool finite = true;
  for (std::int64_t i = 0; i < count; ++i) {
    finite = finite && std::isfinite(x[i]);
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  *slot.scale = finite ? (high - low) / kSteps : std::numeric_limits<float>::quiet_NaN();
  *slot.middle = low + kMiddle * *slot.scale;
  const auto code = [&](std::int64_t i) {
    if (i == count) return 0;
    if (!(*slot.scale > 0.0f)) return static_cast<int>(kMiddle);
    return static_cast<int>(std::clamp(std::nearbyint((x[i] - low) / *slot.scale), 0.0f, kSteps));
  };
  for (std::int64_t i = 0; i < count; i += 2) {
    slot.elements[i / 2 * slot.step] = static_cast<std::byte>(code(i) | code(i + 1) << 4);
  }
}

}  // namespace

void encode_kv(KvFormat format, const float* x, std::int64_t count, const KvSlot& slot) {
  if (format == KvFormat::int4) return encode_int4(x, count, slot);
  const auto size = static_cast<std::size_t>(count);
  std::vector<std::int8_t> codes(size);
  std::vector<float> rounded(x, x + count);
  if (format == KvFormat::int8) quantize_inputs(x, count, 0, codes.data(), slot.scale);
  if (format == KvFormat::fp8_e4m3) round_inputs_to_e4m3(x, count, rounded.data(), slot.scale);
  for (std::size_t i = 0; i < size; ++i) {
    std::byte* element = slot.elements + static_cast<std::ptrdiff_t>(i) * slot.step;
    const std::uint16_t half = float_to_bf16(rounded[i]);
    switch (format) {
      case KvFormat::f32:
        std::memcpy(element, &rounded[i], 4);
        break;
      case KvFormat::bf16:
        std::memcpy(element, &half, 2);
        break;
      case KvFormat::int8:
        *element = static_cast<std::byte>(codes[i]);
        break;
      case KvFormat::fp8_e4m3:
      case KvFormat::fp8_e4m3_unscaled:
        *element = static_cast<std::byte>(float_to_e4m3(rounded[i]));
        break;
      case KvFormat::fp8_e5m2:
        *element = static_cast<std::byte>(float_to_e5m2(rounded[i]));
        break;
      case KvFormat::int4:
        break;
    }
  }
}

float decode_kv(KvFormat format, const KvSlot& slot, std::int64_t i) {
  const std::byte* element = slot.elements + (format == KvFormat::int4 ? i / 2 : i) * slot.step;
  float value = 0.0f;
  std::uint16_t half = 0;
  switch (format) {
    case KvFormat::f32:
      std::memcpy(&value, element, 4);
      break;
    case KvFormat::bf16:
      std::memcpy(&half, element, 2);
      value = bf16_to_float(half);
      break;
    case KvFormat::int8:
      value = *slot.scale * static_cast<float>(std::to_integer<std::int8_t>(*element));
      break;
    case KvFormat::fp8_e4m3:
      value = *slot.scale * e4m3_to_float(std::to_integer<std::uint8_t>(*element));
      break;
    case KvFormat::fp8_e4m3_unscaled:
      value = e4m3_to_float(std::to_integer<std::uint8_t>(*element));
      break;
    case KvFormat::fp8_e5m2:
      value = e5m2_to_float(std::to_integer<std::uint8_t>(*element));
      break;
    case KvFormat::int4: {
      const int code = std::to_integer<int>(*element) >> (i % 2 * 4) & 15;
      value = *slot.scale * (static_cast<float>(code) - kMiddle) + *slot.middle;
      break;
    }
  }
  return value;
}

std::uint16_t kv_bound(float number, bool up) {
  constexpr std::uint32_t kLargest = 0x7f7f, kSign = 0x8000;  // of bfloat16
  const auto bits = std::bit_cast<std::uint32_t>(number);
  const bool negative = (bits & 0x80000000u) != 0;
  // Away from zero where that is the way, else towards it.
  const std::uint32_t magnitude = ((bits & 0x7fffffffu) + (negative == up ? 0u : 0xffffu)) >> 16;
  return static_cast<std::uint16_t>(std::min(magnitude, kLargest) | (negative && magnitude > 0 ? kSign : 0u));
}

std::string kv_format_names(std::span<const KvFormat> formats) {
  std::string names;
  for (std::size_t i = 0; i < formats.size(); ++i) {
    if (i > 0) names += i + 1 < formats.size() ? ", " : " and ";
    names += kv_format_name(formats[i]);
  }
  return names;
}

}  // namespace millrace
