// Plain numbers and blocks of 32. The order of the float operations is that of ggml's reference, so that bytes are
// equal.
#include "convert/block_encoder.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "core/check.h"
#include "core/float16.h"

namespace millrace {

namespace {

constexpr int kBlock = 32, kHalf = 16;

using Codes = std::array<std::uint8_t, kBlock>;

void store_half(float value, std::byte* target) {
  const std::uint16_t bits = float_to_f16(value);
  std::memcpy(target, &bits, sizeof bits);
}

/// 0 where there is no inverse, or none that a float holds: the scale is then zero as a half as well.
float inverse(float scale) {
  const float result = 1.0f / scale;
  return std::isfinite(result) ? result : 0.0f;
}

/// Of what is no number, which only comes of a reach that no float holds: top.
std::uint8_t truncated(float value, int top) {
  const auto most = static_cast<float>(top);
  return static_cast<std::uint8_t>(value < most ? value : most);
}

/// Low four bits: elements j and j + 16 share byte j.
void store_nibbles(const Codes& codes, std::byte* target) {
  for (std::size_t j = 0; j < kHalf; ++j) {
    target[j] = static_cast<std::byte>((codes[j] & 0xf) | (codes[j + kHalf] & 0xf) << 4);
  }
}

/// Bit j is the fifth of element j.
void store_fifth_bits(const Codes& codes, std::byte* target) {
  std::uint32_t bits = 0;
  for (std::size_t j = 0; j < kBlock; ++j) bits |= static_cast<std::uint32_t>(codes[j] >> 4) << j;
  std::memcpy(target, &bits, sizeof bits);
}

void encode_q8_0(const float* values, std::byte* target) {
  float largest = 0.0f;
  for (int j = 0; j < kBlock; ++j) largest = std::max(largest, std::fabs(values[j]));
  const float scale = largest / 127.0f, id = inverse(scale);
  store_half(scale, target);
  for (int j = 0; j < kBlock; ++j) {
    target[2 + j] = static_cast<std::byte>(static_cast<std::int8_t>(std::round(values[j] * id)));
  }
}

/// The number that is largest in size, the first of several, becomes code 0, which stands for -half: the scale has the
/// opposite sign.
float codes_around(const float* values, int half, Codes& codes) {
  float largest = 0.0f;
  for (int j = 0; j < kBlock; ++j) {
    if (std::fabs(values[j]) > std::fabs(largest)) largest = values[j];
  }
  const float scale = largest / static_cast<float>(-half), id = inverse(scale);
  for (std::size_t j = 0; j < kBlock; ++j) {
    codes[j] = truncated(values[j] * id + (static_cast<float>(half) + 0.5f), 2 * half - 1);
  }
  return scale;
}

/// Codes 0 to `top` reach from the lowest to the highest number; returns scale and lowest.
std::pair<float, float> codes_between(const float* values, int top, Codes& codes) {
  const auto [low, high] = std::minmax_element(values, values + kBlock);
  const float scale = (*high - *low) / static_cast<float>(top), id = inverse(scale);
  for (std::size_t j = 0; j < kBlock; ++j) codes[j] = truncated((values[j] - *low) * id + 0.5f, top);
  return {scale, *low};
}

void encode_q4_0(const float* values, std::byte* target) {
  Codes codes{};
  store_half(codes_around(values, 8, codes), target);
  store_nibbles(codes, target + 2);
}

void encode_q5_0(const float* values, std::byte* target) {
  Codes codes{};
  store_half(codes_around(values, 16, codes), target);
  store_fifth_bits(codes, target + 2);
  store_nibbles(codes, target + 6);
}

void encode_q4_1(const float* values, std::byte* target) {
  Codes codes{};
  const auto [scale, low] = codes_between(values, 15, codes);
  store_half(scale, target);
  store_half(low, target + 2);
  store_nibbles(codes, target + 4);
}

void encode_q5_1(const float* values, std::byte* target) {
  Codes codes{};
  const auto [scale, low] = codes_between(values, 31, codes);
  store_half(scale, target);
  store_half(low, target + 2);
  store_fifth_bits(codes, target + 4);
  store_nibbles(codes, target + 8);
}

using EncodeBlock = void (*)(const float* values, std::byte* target);

/// Null where there is none.
EncodeBlock block_encoder(QuantFormat format) {
  switch (format) {
    case QuantFormat::q8_0:
      return encode_q8_0;
    case QuantFormat::q4_0:
      return encode_q4_0;
    case QuantFormat::q4_1:
      return encode_q4_1;
    case QuantFormat::q5_0:
      return encode_q5_0;
    case QuantFormat::q5_1:
      return encode_q5_1;
    case QuantFormat::q4_k:
      return [](const float* values, std::byte* target) { encode_k_block(QuantFormat::q4_k, values, target); };
    case QuantFormat::q5_k:
      return [](const float* values, std::byte* target) { encode_k_block(QuantFormat::q5_k, values, target); };
    case QuantFormat::q6_k:
      return [](const float* values, std::byte* target) { encode_k_block(QuantFormat::q6_k, values, target); };
    default:
      return nullptr;
  }
}

}  // namespace

bool can_encode(QuantFormat format) {
  return format == QuantFormat::f32 || format == QuantFormat::f16 || format == QuantFormat::bf16 ||
         block_encoder(format) != nullptr;
}

void encode(QuantFormat format, const float* values, std::byte* target, std::size_t elements) {
  if (format == QuantFormat::f32) {
    if (elements != 0) std::memcpy(target, values, elements * sizeof(float));
    return;
  }
  if (format == QuantFormat::f16 || format == QuantFormat::bf16) {
    for (std::size_t i = 0; i < elements; ++i) {
      const std::uint16_t bits = format == QuantFormat::f16 ? float_to_f16(values[i]) : float_to_bf16(values[i]);
      std::memcpy(target + i * sizeof bits, &bits, sizeof bits);
    }
    return;
  }
  const EncodeBlock encode_block = block_encoder(format);
  const QuantFormatInfo& info = format_info(format);
  MILLRACE_CHECK(encode_block != nullptr, "numbers are not written as {}", info.name);
  MILLRACE_CHECK(elements % info.block_elements == 0, "{} elements of {} in blocks of {}", elements, info.name,
                 info.block_elements);
  for (std::size_t i = 0; i < elements; i += info.block_elements) {
    encode_block(values + i, target);
    target += info.block_bytes;
  }
}

}  // namespace millrace
