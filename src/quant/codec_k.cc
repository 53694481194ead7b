// Blocks of 256 elements, in groups of 16 or 32 with small integer scales of their own. The order of the float
// operations is part of each definition: a group's scale is the product of the block's and the group's, rounded.
#include <array>

#include "quant/blocks.h"

namespace millrace {

namespace {

constexpr int kGroups = 8;  // of 32 elements

}  // namespace

/// Groups 0 to 3 have theirs in the low 6 bits of bytes 0 to 3 (scales) and 4 to 7 (minimums). Groups 4 to 7 have the
/// low 4 bits in the halves of bytes 8 to 11 and the high 2 bits in what the first eight bytes leave free.
GroupScales unpack_scales(const std::uint8_t* packed) {
  GroupScales out;
  for (int g = 0; g < 4; ++g) {
    const std::uint8_t scale = packed[g], minimum = packed[g + 4], rest = packed[g + 8];
    out.scale[g] = scale & 0x3f;
    out.minimum[g] = minimum & 0x3f;
    out.scale[g + 4] = static_cast<std::uint8_t>((rest & 0xf) | (scale >> 6) << 4);
    out.minimum[g + 4] = static_cast<std::uint8_t>((rest >> 4) | (minimum >> 6) << 4);
  }
  return out;
}

/// 16 bytes of (minimum, scale) halves, one a group of 16; 64 bytes of codes; scale; scale of the minimums. Half h of
/// the block has 32 bytes of codes: bits 2s and 2s + 1 of byte j belong to element 128 h + 32 s + j.
/// (d * scale) * q - (dmin * minimum).
void decode_q2_k(const std::byte* block, float* target) {
  const std::uint8_t* scales = block_codes(block);
  const std::uint8_t* codes = block_codes(block + 16);
  const float d = load_scale(block + 80), dmin = load_scale(block + 82);
  for (int group = 0; group < 16; ++group) {
    const float scale = d * static_cast<float>(scales[group] & 0xf);
    const float minimum = dmin * static_cast<float>(scales[group] >> 4);
    const std::uint8_t* from = codes + group / 8 * 32 + group % 2 * 16;
    const int shift = group / 2 % 4 * 2;
    for (int j = 0; j < 16; ++j) {
      target[group * 16 + j] = scale * static_cast<float>((from[j] >> shift) & 3) - minimum;
    }
  }
}

/// Scale g of 16 has its low 4 bits in a half of byte g % 8 and its high 2 bits in byte 8 + g % 4.
int q3_k_factor(const std::uint8_t* scales, int group) {
  const int low = group < 8 ? scales[group] & 0xf : scales[group - 8] >> 4;
  const int high = (scales[8 + group % 4] >> (group / 4 * 2)) & 3;
  return (low | high << 4) - 32;
}

int iq4_xs_factor(int scales_high, const std::uint8_t* scales_low, int group) {
  const int low = (scales_low[group / 2] >> (group % 2 * 4)) & 0xf;
  const int high = (scales_high >> (group * 2)) & 3;
  return (low | high << 4) - 32;
}

/// 32 bytes of high bits (bit s of byte j belongs to element 32 s + j); 64 bytes of low bits as in Q2_K; 12 bytes of
/// 6-bit scales; scale. (d * (scale - 32)) * (q - 4).
void decode_q3_k(const std::byte* block, float* target) {
  const std::uint8_t* high = block_codes(block);
  const std::uint8_t* low = block_codes(block + 32);
  const std::uint8_t* scales = block_codes(block + 96);
  const float d = load_scale(block + 108);
  for (int group = 0; group < 16; ++group) {
    const float scale = d * static_cast<float>(q3_k_factor(scales, group));
    const int column = group % 2 * 16, shift = group / 2 % 4 * 2, bit = group / 2;
    const std::uint8_t* from = low + group / 8 * 32 + column;
    for (int j = 0; j < 16; ++j) {
      const int code = ((from[j] >> shift) & 3) | ((high[column + j] >> bit) & 1) << 2;
      target[group * 16 + j] = scale * static_cast<float>(code - 4);
    }
  }
}

/// scale; scale of the minimums; 12 bytes of scales; 128 bytes of codes. Byte j of quarter k holds element 64 k + j in
/// its low half and element 64 k + 32 + j in its high half. (d * scale) * q - (dmin * minimum).
void decode_q4_k(const std::byte* block, float* target) {
  const float d = load_scale(block), dmin = load_scale(block + 2);
  const GroupScales scales = unpack_scales(block_codes(block + 4));
  const std::uint8_t* codes = block_codes(block + 16);
  for (int group = 0; group < kGroups; ++group) {
    const float scale = d * static_cast<float>(scales.scale[group]);
    const float minimum = dmin * static_cast<float>(scales.minimum[group]);
    const std::uint8_t* from = codes + group / 2 * 32;
    const int shift = group % 2 * 4;
    for (int j = 0; j < 32; ++j) {
      target[group * 32 + j] = scale * static_cast<float>((from[j] >> shift) & 0xf) - minimum;
    }
  }
}

/// As Q4_K with 32 bytes of fifth bits before the codes: bit g of byte j belongs to element 32 g + j.
void decode_q5_k(const std::byte* block, float* target) {
  const float d = load_scale(block), dmin = load_scale(block + 2);
  const GroupScales scales = unpack_scales(block_codes(block + 4));
  const std::uint8_t* high = block_codes(block + 16);
  const std::uint8_t* codes = block_codes(block + 48);
  for (int group = 0; group < kGroups; ++group) {
    const float scale = d * static_cast<float>(scales.scale[group]);
    const float minimum = dmin * static_cast<float>(scales.minimum[group]);
    const std::uint8_t* from = codes + group / 2 * 32;
    const int shift = group % 2 * 4;
    for (int j = 0; j < 32; ++j) {
      const int code = ((from[j] >> shift) & 0xf) | ((high[j] >> group) & 1) << 4;
      target[group * 32 + j] = scale * static_cast<float>(code) - minimum;
    }
  }
}

/// 128 bytes of low 4 bits; 64 bytes of high 2 bits; 16 signed scales, one a group of 16; scale. Half h of the block
/// has 64 bytes of low bits, the low halves for its first 64 elements, and 32 bytes of high bits: bits 2s and 2s + 1 of
/// byte j belong to element 128 h + 32 s + j. (d * scale) * (q - 32).
void decode_q6_k(const std::byte* block, float* target) {
  const std::uint8_t* low = block_codes(block);
  const std::uint8_t* high = block_codes(block + 128);
  const std::uint8_t* scales = block_codes(block + 192);
  const float d = load_scale(block + 208);
  for (int group = 0; group < 16; ++group) {
    const float scale = d * static_cast<float>(static_cast<std::int8_t>(scales[group]));
    const int half = group / 8, quarter = group / 2 % 4, column = group % 2 * 16;
    const std::uint8_t* low_from = low + half * 64 + quarter % 2 * 32 + column;
    const std::uint8_t* high_from = high + half * 32 + column;
    const int low_shift = quarter / 2 * 4, high_shift = quarter * 2;
    for (int j = 0; j < 16; ++j) {
      const int code = ((low_from[j] >> low_shift) & 0xf) | ((high_from[j] >> high_shift) & 3) << 4;
      target[group * 16 + j] = scale * static_cast<float>(code - 32);
    }
  }
}

/// scale; 16 bits with the high 2 bits of eight scales; 4 bytes with their low 4 bits; 128 bytes of codes. Byte j of
/// group g holds element 32 g + j in its low half and element 32 g + 16 + j in its high half.
/// (d * (scale - 32)) * level of q.
void decode_iq4_xs(const std::byte* block, float* target) {
  const float d = load_scale(block);
  const int scales_high = load_u16(block + 2);
  const std::uint8_t* scales_low = block_codes(block + 4);
  const std::uint8_t* codes = block_codes(block + 8);
  for (int group = 0; group < kGroups; ++group) {
    const float scale = d * static_cast<float>(iq4_xs_factor(scales_high, scales_low, group));
    for (int j = 0; j < 16; ++j) {
      const std::uint8_t code = codes[group * 16 + j];
      target[group * 32 + j] = scale * static_cast<float>(kIq4Levels[code & 0xf]);
      target[group * 32 + 16 + j] = scale * static_cast<float>(kIq4Levels[code >> 4]);
    }
  }
}

}  // namespace millrace
