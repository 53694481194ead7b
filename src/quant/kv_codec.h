// Keys and values to and from memory: scalar and exact, what the kernels are held against.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "quant/kv_format.h"

namespace millrace {

/// Where the numbers of one head at one position lie.
struct KvSlot {
  std::byte* elements = nullptr;
  std::ptrdiff_t step = 0;  // bytes from an element to the next
  float* scale = nullptr;   // of formats that have one
  float* middle = nullptr;  // of int4
};

/// Rounds numbers x [count] to the nearest that the format has, ties to the even code.
///
/// Scaled: the scale is max |x| / the largest code, 0 for zeros. int4: scale = (max x - min x) / 15 and middle = min x
/// + 8 * scale; where all numbers are the same, the middle is that and the scale 0. Where a number is not finite, scale
/// and middle are not, and so results are not. Unscaled: what lies beyond the largest code, infinity too, becomes that
/// code; NaN stays one.
void encode_kv(KvFormat format, const float* x, std::int64_t count, const KvSlot& slot);

/// Number i of those that were encoded.
float decode_kv(KvFormat format, const KvSlot& slot, std::int64_t i);

/// A bound as it is stored: the nearest bfloat16 that is not below (`up`), or not above. What lies beyond the finite
/// ones becomes the last of them, so that a sum of products with bounds has a sign; bounds of nothing (minus infinity
/// for the largest) too. Zero is positive.
std::uint16_t kv_bound(float number, bool up);

/// Names for a message: "f32, bf16 and int8".
std::string kv_format_names(std::span<const KvFormat> formats);

}  // namespace millrace
