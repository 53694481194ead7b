// Number formats of stored weights. A format is a value: a row of a table that says what a block holds; the scalar
// codec in quant/codec.h says what it means. GGUF's block types keep the names and layouts of the GGUF format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace millrace {

enum class QuantFormat : std::uint8_t {
  f32,
  f16,
  bf16,
  f8_e4m3,  // plain elements
  q8_0,
  q4_0,
  q4_1,
  q5_0,
  q5_1,  // 32 elements a block
  q2_k,
  q3_k,
  q4_k,
  q5_k,
  q6_k,  // 256 elements a block
  iq4_nl,
  iq4_xs,
  mxfp4,  // non-linear 4 bit; OCP microscaling FP4 (32 elements, E8M0 scale)
  u8,     // raw numbers, which are parts of one of the above or of the next
  i8,
  i32,
  i64,
  codes,  // in tensors of their own beside scales (quant/coded_matrix.h)
};

struct QuantFormatInfo {
  std::string_view name;       // "q4_k", as in recipes and messages
  std::size_t block_elements;  // elements a block holds; a row is a whole number of blocks
  std::size_t block_bytes;     // stored bytes of a block, unpadded
};

const QuantFormatInfo& format_info(QuantFormat format);
std::optional<QuantFormat> format_from_name(std::string_view name);

/// Stored bytes of `elements` consecutive elements, which must be a whole number of blocks.
inline std::size_t format_bytes(QuantFormat format, std::size_t elements) {
  const QuantFormatInfo& info = format_info(format);
  return elements / info.block_elements * info.block_bytes;
}

/// Whether elements mean nothing by themselves.
constexpr bool is_raw(QuantFormat format) {
  return format >= QuantFormat::u8 && format <= QuantFormat::i64;
}

constexpr bool is_plain(QuantFormat format) {
  return format <= QuantFormat::f8_e4m3;
}

}  // namespace millrace
