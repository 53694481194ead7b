// Views of foreign layouts: every number where its maker put it.
#include "quant/coded_matrix.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "core/float16.h"

namespace millrace {
namespace {

std::vector<std::uint8_t> numbers(std::uint32_t seed, std::size_t count, std::int32_t bits) {
  std::mt19937 engine(seed);
  std::vector<std::uint8_t> all(count);
  for (std::uint8_t& number : all) number = static_cast<std::uint8_t>(engine() & ((1u << bits) - 1));
  return all;
}

/// `count` numbers in 32-bit words, number i of a word at the place order[i] (in numbers), or i.
std::vector<std::uint32_t> words_of(const std::vector<std::uint8_t>& values, std::int32_t bits,
                                    const std::vector<int>& order = {}) {
  const std::size_t per = 32 / static_cast<std::size_t>(bits);
  std::vector<std::uint32_t> words((values.size() + per - 1) / per);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::size_t place = order.empty() ? i % per : static_cast<std::size_t>(order[i % per]);
    words[i / per] |= static_cast<std::uint32_t>(values[i]) << (place * static_cast<std::size_t>(bits));
  }
  return words;
}

TEST(PackedNumbers, AlongColumns) {
  constexpr std::int64_t kRows = 3, kCols = 37;  // the last word of a row is not full
  for (const std::int32_t bits : {2, 4, 8}) {
    std::vector<std::uint32_t> words;
    std::vector<std::vector<std::uint8_t>> rows;
    for (std::uint32_t r = 0; r < kRows; ++r) {
      rows.push_back(numbers(r, kCols, bits));
      const auto of_row = words_of(rows.back(), bits);
      words.insert(words.end(), of_row.begin(), of_row.end());
    }
    const PackedNumbers packed{.data = reinterpret_cast<const std::byte*>(words.data()),
                               .bits = bits,
                               .word_bytes = 4,
                               .row_stride = static_cast<std::int64_t>(words.size() / kRows) * 4,
                               .column_stride = 4};
    for (std::int64_t r = 0; r < kRows; ++r) {
      std::vector<std::uint8_t> read(kCols);
      packed.read_row(r, kCols, read.data());
      EXPECT_EQ(read, rows[static_cast<std::size_t>(r)]) << bits;
      for (std::int64_t c = 0; c < kCols; ++c) EXPECT_EQ(packed.at(r, c), read[static_cast<std::size_t>(c)]);
    }
  }
}

TEST(PackedNumbers, AlongRowsAndInTheOrderOfAwq) {
  constexpr std::int64_t kRows = 16, kCols = 5;
  const std::vector<int> awq = {0, 4, 1, 5, 2, 6, 3, 7};
  for (const bool interleaved : {false, true}) {
    std::vector<std::uint32_t> words;
    std::vector<std::vector<std::uint8_t>> columns;
    for (std::uint32_t c = 0; c < kCols; ++c) {
      columns.push_back(numbers(10 + c, kRows, 4));
      const auto of_column = words_of(columns.back(), 4, interleaved ? awq : std::vector<int>());
      words.insert(words.end(), of_column.begin(), of_column.end());
    }
    const PackedNumbers packed{.data = reinterpret_cast<const std::byte*>(words.data()),
                               .bits = 4,
                               .word_bytes = 4,
                               .row_stride = 4,
                               .column_stride = kRows / 8 * 4,
                               .along_rows = true,
                               .interleaved = interleaved};
    for (std::int64_t r = 0; r < kRows; ++r) {
      std::vector<std::uint8_t> read(kCols);
      packed.read_row(r, kCols, read.data());
      for (std::size_t c = 0; c < kCols; ++c) {
        EXPECT_EQ(read[c], columns[c][static_cast<std::size_t>(r)]);
        EXPECT_EQ(packed.at(r, static_cast<std::int64_t>(c)), read[c]);
      }
    }
  }
}

TEST(PackedScales, AllFormats) {
  const float value = 1.5f;
  const std::uint16_t half = float_to_f16(value), brain = float_to_bf16(value);
  const std::uint8_t e4m3 = 0x3c, power = 130, no_power = 255;
  const auto at = [](QuantFormat format, const void* data) {
    return PackedScales{.data = static_cast<const std::byte*>(data), .format = format}.at(0, 0);
  };
  EXPECT_EQ(at(QuantFormat::f32, &value), value);
  EXPECT_EQ(at(QuantFormat::f16, &half), value);
  EXPECT_EQ(at(QuantFormat::bf16, &brain), value);
  EXPECT_EQ(at(QuantFormat::f8_e4m3, &e4m3), value);
  EXPECT_EQ(at(QuantFormat::u8, &power), 8.0f);
  EXPECT_TRUE(std::isnan(at(QuantFormat::u8, &no_power)));
  const float table[6] = {1, 2, 3, 4, 5, 6};  // two blocks of three rows, three groups
  const PackedScales blocks{
      .data = reinterpret_cast<const std::byte*>(table), .row_stride = 12, .column_stride = 4, .rows = 3};
  EXPECT_EQ(blocks.at(2, 1), 2.0f);
  EXPECT_EQ(blocks.at(3, 1), 5.0f);
}

struct Decoded {
  std::vector<float> values;
  std::vector<std::uint8_t> zeros;
};

Decoded decode(const CodedMatrix& matrix, std::int64_t row) {
  Decoded result{std::vector<float>(static_cast<std::size_t>(matrix.cols)),
                 std::vector<std::uint8_t>(static_cast<std::size_t>(matrix.groups()))};
  std::vector<std::int8_t> codes(result.values.size());
  std::vector<float> scales(result.zeros.size());
  float unit = 0.0f;
  matrix.read_row(row, {codes.data(), scales.data(), result.zeros.data(), &unit});
  matrix.decode_row(row, result.values.data());
  return result;
}

TEST(CodedMatrix, ZerosAreAddedUpModuloTheirBits) {
  const std::uint32_t codes = 0xfedcba98, zeros = 0x0000000f;  // eight inputs in two groups; zeros 15 and 0
  const float scales[2] = {0.5f, 2.0f};
  CodedMatrix matrix{
      .kind = CodeKind::int4,
      .rows = 1,
      .cols = 8,
      .group = 4,
      .codes = {.data = reinterpret_cast<const std::byte*>(&codes), .bits = 4, .word_bytes = 4, .column_stride = 4},
      .zeros =
          PackedNumbers{
              .data = reinterpret_cast<const std::byte*>(&zeros), .bits = 4, .word_bytes = 4, .column_stride = 4},
      .zero_offset = 1,
      .scales = {.data = reinterpret_cast<const std::byte*>(scales), .column_stride = 4}};
  const Decoded decoded = decode(matrix, 0);
  EXPECT_EQ(decoded.zeros, (std::vector<std::uint8_t>{0, 1}));
  EXPECT_EQ(decoded.values, (std::vector<float>{4.0f, 4.5f, 5.0f, 5.5f, 22.0f, 24.0f, 26.0f, 28.0f}));
}

TEST(CodedMatrix, EightBitsWithAndWithoutSign) {
  const std::int8_t stored[4] = {-128, -1, 0, 127};
  const std::int8_t zero = -3;
  const float scale = 0.25f;
  CodedMatrix matrix{.rows = 1,
                     .cols = 4,
                     .codes = {.data = reinterpret_cast<const std::byte*>(stored), .column_stride = 1},
                     .scales = {.data = reinterpret_cast<const std::byte*>(&scale)},
                     .unit = 2.0f};
  EXPECT_EQ(decode(matrix, 0).values, (std::vector<float>{-64.0f, -0.5f, 0.0f, 63.5f}));
  matrix.zeros = PackedNumbers{.data = reinterpret_cast<const std::byte*>(&zero)};
  EXPECT_EQ(decode(matrix, 0).values, (std::vector<float>{-62.5f, 1.0f, 1.5f, 65.0f}));
  EXPECT_EQ(decode(matrix, 0).zeros, (std::vector<std::uint8_t>{125}));
  // Without sign, raised by 128.
  matrix.offset = -128;
  matrix.zeros.reset();
  EXPECT_EQ(decode(matrix, 0).values, (std::vector<float>{0.0f, 63.5f, -64.0f, -0.5f}));
}

TEST(CodedMatrix, InputsInAnotherOrder) {
  const std::uint8_t codes[4] = {1, 2, 3, 4};
  const float scales[2] = {1.0f, 10.0f};
  // Inputs 0 and 3 are of group 1.
  const CodedMatrix matrix{.rows = 1,
                           .cols = 4,
                           .group = 2,
                           .codes = {.data = reinterpret_cast<const std::byte*>(codes), .column_stride = 1},
                           .scales = {.data = reinterpret_cast<const std::byte*>(scales), .column_stride = 4},
                           .input_order = {1, 2, 0, 3}};
  EXPECT_EQ(decode(matrix, 0).values, (std::vector<float>{10.0f, 2.0f, 3.0f, 40.0f}));
}

TEST(CodedMatrix, FloatsOfFourAndEightBits) {
  const std::uint8_t nibbles[2] = {0xf7, 0x21};  // 6, -6, 0.5, 1
  const std::uint8_t scale = 0x40;               // 2 in E4M3
  const CodedMatrix fp4{.kind = CodeKind::e2m1,
                        .rows = 1,
                        .cols = 4,
                        .codes = {.data = reinterpret_cast<const std::byte*>(nibbles), .bits = 4, .column_stride = 1},
                        .scales = {.data = reinterpret_cast<const std::byte*>(&scale), .format = QuantFormat::f8_e4m3},
                        .unit = 0.5f};
  EXPECT_EQ(decode(fp4, 0).values, (std::vector<float>{6.0f, -6.0f, 0.5f, 1.0f}));
  const std::uint8_t bytes[3] = {0x7e, 0x81, 0x38};  // 448, -2^-9, 1
  const float unit = 2.0f;
  const CodedMatrix fp8{.kind = CodeKind::e4m3,
                        .rows = 1,
                        .cols = 3,
                        .codes = {.data = reinterpret_cast<const std::byte*>(bytes), .column_stride = 1},
                        .scales = {.data = reinterpret_cast<const std::byte*>(&unit)}};
  EXPECT_EQ(decode(fp8, 0).values, (std::vector<float>{896.0f, -0x1p-8f, 2.0f}));
}

}  // namespace
}  // namespace millrace
