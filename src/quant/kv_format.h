// Number formats of keys and values in memory.
//
//   f32, bf16          the number
//   int8               codes -127 to 127, and a scale for each position and kv head: value = scale * code
//   fp8_e4m3           the same with codes of E4M3 (quant/small_float.h)
//   fp8_e4m3.unscaled  codes of E4M3 as they are: what a scale is worth
//   fp8_e5m2           codes of E5M2 as they are: the upper byte of a half
//   int4               codes 0 to 15, and a scale and a middle for each position and kv head: value = scale * (code -
//   8)
//                      + middle
//
// A scale takes the largest of a head's numbers at a position to the largest code, so that what is stored depends on
// that position alone, whatever else is computed with it. kv_codec.h has the codec.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace millrace {

enum class KvFormat : std::uint8_t { f32, bf16, int8, fp8_e4m3, fp8_e4m3_unscaled, fp8_e5m2, int4 };

inline constexpr KvFormat kKvFormats[] = {
    KvFormat::f32,      KvFormat::bf16, KvFormat::int8, KvFormat::fp8_e4m3, KvFormat::fp8_e4m3_unscaled,
    KvFormat::fp8_e5m2, KvFormat::int4};

/// Of an element: a number, or with int4 two.
constexpr std::size_t kv_element_bytes(KvFormat format) {
  return format == KvFormat::f32 ? 4 : format == KvFormat::bf16 ? 2 : 1;
}

/// Elements that `numbers` numbers of a head take. Those of int4 hold numbers 2i and 2i + 1 of one position in the low
/// and the high half: no two positions share a byte, so tasks may store them at the same time.
constexpr std::size_t kv_elements(KvFormat format, std::size_t numbers) {
  return format == KvFormat::int4 ? (numbers + 1) / 2 : numbers;
}

/// Floats that go with the codes of a head at one position: none, a scale, or a scale and a middle.
constexpr std::size_t kv_scales(KvFormat format) {
  return format == KvFormat::int4 ? 2 : format == KvFormat::int8 || format == KvFormat::fp8_e4m3 ? 1 : 0;
}

/// All that a head has at one position.
constexpr std::size_t kv_head_bytes(KvFormat format, std::size_t numbers) {
  return kv_elements(format, numbers) * kv_element_bytes(format) + kv_scales(format) * sizeof(float);
}

/// Numbers that a bound of a head's keys takes, in whole groups of 16: the others are zeros.
constexpr std::size_t kv_bound_numbers(std::size_t numbers) {
  return (numbers + 15) / 16 * 16;
}

constexpr std::string_view kv_format_name(KvFormat format) {
  constexpr std::string_view kNames[] = {"f32", "bf16", "int8", "fp8_e4m3", "fp8_e4m3.unscaled", "fp8_e5m2", "int4"};
  return kNames[static_cast<std::size_t>(format)];
}

constexpr std::optional<KvFormat> kv_format_from_name(std::string_view name) {
  for (const KvFormat format : kKvFormats) {
    if (kv_format_name(format) == name) return format;
  }
  return std::nullopt;
}

}  // namespace millrace
