#include "quant/coded_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/float16.h"
#include "quant/small_float.h"

namespace millrace {

namespace {

float power_of_two(std::uint8_t exponent) {
  return exponent == 255 ? std::numeric_limits<float>::quiet_NaN() : std::ldexp(1.0f, exponent - 127);
}

template <typename Word>
Word load(const std::byte* p) {
  Word word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

}  // namespace

std::int32_t PackedNumbers::bit_of(std::int64_t index) const {
  auto place = static_cast<std::int32_t>(index % per_word());
  if (interleaved) place = place / 2 + place % 2 * 4;
  return place * bits;
}

std::uint8_t PackedNumbers::at(std::int64_t row, std::int64_t column) const {
  std::int64_t& packed = along_rows ? row : column;
  const std::int32_t bit = bit_of(packed);
  packed /= per_word();
  const std::byte byte = data[row * row_stride + column * column_stride + bit / 8];
  return static_cast<std::uint8_t>(std::to_integer<std::uint32_t>(byte) >> (bit % 8) & ((1u << bits) - 1));
}

void PackedNumbers::read_row(std::int64_t row, std::int64_t count, std::uint8_t* target) const {
  const std::uint32_t mask = (1u << bits) - 1;
  if (along_rows) {
    const std::int32_t bit = bit_of(row);
    const std::byte* p = data + row / per_word() * row_stride + bit / 8;
    for (std::int64_t c = 0; c < count; ++c, p += column_stride) {
      target[c] = static_cast<std::uint8_t>(std::to_integer<std::uint32_t>(*p) >> (bit % 8) & mask);
    }
    return;
  }
  const std::byte* word = data + row * row_stride;
  for (std::int64_t c = 0; c < count; word += column_stride) {
    for (std::int32_t i = 0; i < per_word() && c < count; ++i, ++c) {
      const std::int32_t bit = interleaved ? bit_of(i) : i * bits;
      target[c] = static_cast<std::uint8_t>(std::to_integer<std::uint32_t>(word[bit / 8]) >> (bit % 8) & mask);
    }
  }
}

float PackedScales::at(std::int64_t row, std::int64_t group) const {
  const std::byte* p = data + row / rows * row_stride + group * column_stride;
  switch (format) {
    case QuantFormat::f16:
      return f16_to_float(load<std::uint16_t>(p));
    case QuantFormat::bf16:
      return bf16_to_float(load<std::uint16_t>(p));
    case QuantFormat::f8_e4m3:
      return e4m3_to_float(load<std::uint8_t>(p));
    case QuantFormat::u8:
      return power_of_two(load<std::uint8_t>(p));
    default:
      return load<float>(p);
  }
}

std::optional<std::int64_t> CodedMatrix::byte_input_group() const {
  constexpr std::int64_t kMostInputs = std::int64_t{1} << 17;  // products of -128 to 127 whose sum 32 bits hold
  if (kind == CodeKind::e4m3 || (kind == CodeKind::int8 && zeros)) return std::nullopt;
  if (group == 0) return kind == CodeKind::int8 && cols <= kMostInputs ? std::optional<std::int64_t>(0) : std::nullopt;
  const std::int64_t least = kind == CodeKind::e2m1 ? kIntegerBlock / 2 : kIntegerBlock;
  const bool power = (group & (group - 1)) == 0;
  if (!power || group < least || scales.format == QuantFormat::f32) return std::nullopt;
  return std::max<std::int64_t>(group, kIntegerBlock);
}

void CodedMatrix::read_row(std::int64_t row, const CodeRow& target) const {
  std::vector<std::uint8_t> stored(static_cast<std::size_t>(cols));
  codes.read_row(row, cols, stored.data());
  for (std::size_t k = 0; k < stored.size(); ++k) {
    const std::uint8_t number = stored[input_order.empty() ? k : static_cast<std::size_t>(input_order[k])];
    target.codes[k] = static_cast<std::int8_t>(kind == CodeKind::int8 ? number + offset : number);
  }
  const std::uint32_t mask = (1u << codes.bits) - 1;
  for (std::int64_t g = 0; g < groups(); ++g) {
    target.scales[g] = scales.at(row, g);
    std::uint32_t of_group = static_cast<std::uint32_t>(zero);
    if (zeros) of_group = (zeros->at(row, g) + static_cast<std::uint32_t>(zero_offset)) & mask;
    if (kind == CodeKind::int8) of_group = zeros ? of_group + offset + kByteZero : kByteZero;
    target.zeros[g] = static_cast<std::uint8_t>(of_group);
  }
  *target.row_scale = kind == CodeKind::e2m1 ? 0.5f * unit : unit;
}

void CodedMatrix::decode_row(std::int64_t row, float* target) const {
  std::vector<std::int8_t> of_row(static_cast<std::size_t>(cols));
  std::vector<float> factors(static_cast<std::size_t>(groups()));
  std::vector<std::uint8_t> offsets(factors.size());
  float row_scale = 1.0f;
  read_row(row, {of_row.data(), factors.data(), offsets.data(), &row_scale});
  for (std::int64_t k = 0; k < cols; ++k) {
    const auto g = static_cast<std::size_t>(group == 0 ? 0 : k / group);
    const std::int8_t code = of_row[static_cast<std::size_t>(k)];
    const float step = kind == CodeKind::int8 ? static_cast<float>(code - (offsets[g] - kByteZero))
                                              : step_of_code(kind, code, offsets[g]);
    const std::int64_t column = input_order.empty() ? k : input_order[static_cast<std::size_t>(k)];
    target[column] = step * factors[g] * row_scale;
  }
}

}  // namespace millrace
