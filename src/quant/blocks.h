// What the codecs of the block formats share. All numbers in blocks are little-endian; nothing in them is aligned.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/float16.h"

namespace millrace {

/// The codes of a block as bytes.
inline const std::uint8_t* block_codes(const std::byte* p) {
  return reinterpret_cast<const std::uint8_t*>(p);
}

inline std::uint16_t load_u16(const std::byte* p) {
  std::uint16_t value = 0;
  std::memcpy(&value, p, sizeof value);
  return value;
}

inline std::uint32_t load_u32(const std::byte* p) {
  std::uint32_t value = 0;
  std::memcpy(&value, p, sizeof value);
  return value;
}

/// A scale stored as half precision.
inline float load_scale(const std::byte* p) {
  return f16_to_float(load_u16(p));
}

/// The sixteen levels of the non-linear 4-bit formats.
inline constexpr std::int8_t kIq4Levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                               1,    13,   25,  38,  53,  69,  89,  113};

/// Scales and minimums of the eight groups of Q4_K and Q5_K, 6 bits each in 12 bytes.
struct GroupScales {
  std::array<std::uint8_t, 8> scale, minimum;
};
GroupScales unpack_scales(const std::uint8_t* packed);

/// What the scale of a group of Q3_K (of 16) and IQ4_XS (of 8) is multiplied with, from the fields that hold them.
int q3_k_factor(const std::uint8_t* scales, int group);
int iq4_xs_factor(int scales_high, const std::uint8_t* scales_low, int group);

// One block of 256 elements each (codec_k.cc).
void decode_q2_k(const std::byte* block, float* target);
void decode_q3_k(const std::byte* block, float* target);
void decode_q4_k(const std::byte* block, float* target);
void decode_q5_k(const std::byte* block, float* target);
void decode_q6_k(const std::byte* block, float* target);
void decode_iq4_xs(const std::byte* block, float* target);

}  // namespace millrace
