// Plain elements and blocks of 32. In the 4 and 5 bit formats byte j of the codes holds element j in its low half and
// element j + 16 in its high half. The order of the float operations is part of each definition.
#include "quant/codec.h"

#include <bit>

#include "core/check.h"
#include "quant/blocks.h"
#include "quant/small_float.h"

namespace millrace {

namespace {

constexpr int kHalf = 16;

/// scale, 32 signed bytes: scale * q.
void decode_q8_0(const std::byte* block, float* target) {
  const float scale = load_scale(block);
  const std::uint8_t* codes = block_codes(block + 2);
  for (int j = 0; j < 2 * kHalf; ++j) target[j] = scale * static_cast<float>(static_cast<std::int8_t>(codes[j]));
}

/// scale, codes: scale * (q - 8).
void decode_q4_0(const std::byte* block, float* target) {
  const float scale = load_scale(block);
  const std::uint8_t* codes = block_codes(block + 2);
  for (int j = 0; j < kHalf; ++j) {
    target[j] = scale * static_cast<float>((codes[j] & 0xf) - 8);
    target[j + kHalf] = scale * static_cast<float>((codes[j] >> 4) - 8);
  }
}

/// scale, minimum, codes: scale * q + minimum.
void decode_q4_1(const std::byte* block, float* target) {
  const float scale = load_scale(block), minimum = load_scale(block + 2);
  const std::uint8_t* codes = block_codes(block + 4);
  for (int j = 0; j < kHalf; ++j) {
    target[j] = scale * static_cast<float>(codes[j] & 0xf) + minimum;
    target[j + kHalf] = scale * static_cast<float>(codes[j] >> 4) + minimum;
  }
}

/// The fifth bits of a block are one 32-bit number, element j's at bit j. Code of element j, and of element j + 16.
int five_bits_low(const std::uint8_t* codes, std::uint32_t high, int j) {
  return (codes[j] & 0xf) | static_cast<int>((high >> j & 1) << 4);
}
int five_bits_high(const std::uint8_t* codes, std::uint32_t high, int j) {
  return (codes[j] >> 4) | static_cast<int>((high >> (j + kHalf) & 1) << 4);
}

/// scale, fifth bits, codes: scale * (q - 16).
void decode_q5_0(const std::byte* block, float* target) {
  const float scale = load_scale(block);
  const std::uint32_t high = load_u32(block + 2);
  const std::uint8_t* codes = block_codes(block + 6);
  for (int j = 0; j < kHalf; ++j) {
    target[j] = scale * static_cast<float>(five_bits_low(codes, high, j) - 16);
    target[j + kHalf] = scale * static_cast<float>(five_bits_high(codes, high, j) - 16);
  }
}

/// scale, minimum, fifth bits, codes: scale * q + minimum.
void decode_q5_1(const std::byte* block, float* target) {
  const float scale = load_scale(block), minimum = load_scale(block + 2);
  const std::uint32_t high = load_u32(block + 4);
  const std::uint8_t* codes = block_codes(block + 8);
  for (int j = 0; j < kHalf; ++j) {
    target[j] = scale * static_cast<float>(five_bits_low(codes, high, j)) + minimum;
    target[j + kHalf] = scale * static_cast<float>(five_bits_high(codes, high, j)) + minimum;
  }
}

/// scale, codes: scale * level of q.
void decode_iq4_nl(const std::byte* block, float* target) {
  const float scale = load_scale(block);
  const std::uint8_t* codes = block_codes(block + 2);
  for (int j = 0; j < kHalf; ++j) {
    target[j] = scale * static_cast<float>(kIq4Levels[codes[j] & 0xf]);
    target[j + kHalf] = scale * static_cast<float>(kIq4Levels[codes[j] >> 4]);
  }
}

/// Half of 2^(exponent - 127). The two smallest halves are subnormal floats. 255 is no special value here.
float half_e8m0(std::uint8_t exponent) {
  const std::uint32_t bits = exponent < 2 ? 0x00200000u << exponent : (exponent - 1u) << 23;
  return std::bit_cast<float>(bits);
}

/// E8M0 scale, codes, the steps of which are twice the values (OCP Microscaling Formats 1.0, MXFP4; the order of the
/// codes is GGUF's).
void decode_mxfp4(const std::byte* block, float* target) {
  const float scale = half_e8m0(std::to_integer<std::uint8_t>(block[0]));
  const std::uint8_t* codes = block_codes(block + 1);
  for (int j = 0; j < kHalf; ++j) {
    target[j] = scale * static_cast<float>(kE2m1Steps[codes[j] & 0xf]);
    target[j + kHalf] = scale * static_cast<float>(kE2m1Steps[codes[j] >> 4]);
  }
}

using DecodeBlock = void (*)(const std::byte* block, float* target);

DecodeBlock block_decoder(QuantFormat format) {
  switch (format) {
    case QuantFormat::q8_0:
      return decode_q8_0;
    case QuantFormat::q4_0:
      return decode_q4_0;
    case QuantFormat::q4_1:
      return decode_q4_1;
    case QuantFormat::q5_0:
      return decode_q5_0;
    case QuantFormat::q5_1:
      return decode_q5_1;
    case QuantFormat::q2_k:
      return decode_q2_k;
    case QuantFormat::q3_k:
      return decode_q3_k;
    case QuantFormat::q4_k:
      return decode_q4_k;
    case QuantFormat::q5_k:
      return decode_q5_k;
    case QuantFormat::q6_k:
      return decode_q6_k;
    case QuantFormat::iq4_nl:
      return decode_iq4_nl;
    case QuantFormat::iq4_xs:
      return decode_iq4_xs;
    case QuantFormat::mxfp4:
      return decode_mxfp4;
    case QuantFormat::f32:
    case QuantFormat::f16:
    case QuantFormat::bf16:
    case QuantFormat::f8_e4m3:
    case QuantFormat::u8:
    case QuantFormat::i8:
    case QuantFormat::i32:
    case QuantFormat::i64:
    case QuantFormat::codes:
      break;
  }
  MILLRACE_CHECK(false, "elements of format {} have no value of their own", format_info(format).name);
  return nullptr;
}

}  // namespace

void dequantize(QuantFormat format, const std::byte* source, float* target, std::size_t elements) {
  switch (format) {
    case QuantFormat::f32:
      if (elements != 0) std::memcpy(target, source, elements * sizeof(float));
      return;
    case QuantFormat::f16:
      for (std::size_t i = 0; i < elements; ++i) target[i] = f16_to_float(load_u16(source + 2 * i));
      return;
    case QuantFormat::f8_e4m3:
      for (std::size_t i = 0; i < elements; ++i) target[i] = e4m3_to_float(std::to_integer<std::uint8_t>(source[i]));
      return;
    case QuantFormat::bf16:
      for (std::size_t i = 0; i < elements; ++i) target[i] = bf16_to_float(load_u16(source + 2 * i));
      return;
    default:
      break;
  }
  const DecodeBlock decode = block_decoder(format);
  const QuantFormatInfo& info = format_info(format);
  MILLRACE_CHECK(elements % info.block_elements == 0, "{} elements of {} in blocks of {}", elements, info.name,
                 info.block_elements);
  for (std::size_t i = 0; i < elements; i += info.block_elements) {
    decode(source, target + i);
    source += info.block_bytes;
  }
}

}  // namespace millrace
