// Number formats of keys and values in memory.
//
//   f32, bf16   the number
//   int8        codes -127 to 127, and a scale for each position and kv head: value = scale * code
//   fp8_e4m3    the same with codes of E4M3 (quant/small_float.h)
//
// A scale takes the largest of a head's numbers at a position to the largest code, so that what is stored depends on
// that position alone, whatever else is computed with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace millrace {

enum class KvFormat : std::uint8_t { f32, bf16, int8, fp8_e4m3 };

constexpr std::size_t kv_element_bytes(KvFormat format) {
  return format == KvFormat::f32 ? 4 : format == KvFormat::bf16 ? 2 : 1;
}

/// Whether the numbers are codes with scales, each a float.
constexpr bool kv_scaled(KvFormat format) {
  return format == KvFormat::int8 || format == KvFormat::fp8_e4m3;
}

constexpr std::string_view kv_format_name(KvFormat format) {
  constexpr std::string_view kNames[] = {"f32", "bf16", "int8", "fp8_e4m3"};
  return kNames[static_cast<std::size_t>(format)];
}

constexpr std::optional<KvFormat> kv_format_from_name(std::string_view name) {
  for (const KvFormat format : {KvFormat::f32, KvFormat::bf16, KvFormat::int8, KvFormat::fp8_e4m3}) {
    if (kv_format_name(format) == name) return format;
  }
  return std::nullopt;
}

}  // namespace millrace
