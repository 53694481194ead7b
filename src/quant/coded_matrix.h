// A weight as checkpoints that others have quantised hold it: codes of a few bits in one tensor, their scales and zeros
// in others, each with a layout of its maker's. This is a view of them that says where everything lies; what it means
// is what codes.h says of CodeKind:
//
//   value[o, k] = unit * scale[o, g(k)] * (code[o, k] - zero[o, g(k)])       int8, int4
//   value[o, k] = unit * scale[o, g(k)] * value of the E2M1 or E4M3
//
// docs/number-formats.md has the layouts of the file formats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "quant/codes.h"
#include "quant/format.h"

namespace millrace {

/// Numbers of 2, 4 or 8 bits, one or several to a little-endian word, lowest bits first.
struct PackedNumbers {
  const std::byte* data = nullptr;
  std::int32_t bits = 8;
  std::int32_t word_bytes = 1;     // 1 or 4
  std::int64_t row_stride = 0;     // bytes from a word to the one of the next row, or rows, of words
  std::int64_t column_stride = 0;  // the same along columns
  bool along_rows = false;         // the numbers of a word belong to neighbouring rows; else to neighbouring columns
  bool interleaved = false;        // numbers 0 to 7 of a word stand at the places 0, 4, 1, 5, 2, 6, 3, 7 (AWQ)

  [[nodiscard]] std::int32_t per_word() const { return word_bytes * 8 / bits; }
  /// The number of row `row` and column `column`, without sign.
  [[nodiscard]] std::uint8_t at(std::int64_t row, std::int64_t column) const;
  /// Numbers [0, count) of a row.
  void read_row(std::int64_t row, std::int64_t count, std::uint8_t* target) const;

 private:
  [[nodiscard]] std::int32_t bit_of(std::int64_t index) const;  // within its word
};

/// Scales, one for `rows` rows and `columns` groups of inputs.
struct PackedScales {
  const std::byte* data = nullptr;
  QuantFormat format = QuantFormat::f32;  // f32, f16, bf16, f8_e4m3, or u8: powers of two with a bias of 127 (E8M0)
  std::int64_t row_stride = 0, column_stride = 0;  // bytes
  std::int64_t rows = 1;                           // that share one

  [[nodiscard]] float at(std::int64_t row, std::int64_t group) const;
};

struct CodedMatrix {
  static constexpr std::int32_t kByteZero = 128;  // what zeros of int8 are raised by, so that they are bytes

  CodeKind kind = CodeKind::int8;
  std::int64_t rows = 0, cols = 0;
  std::int64_t group = 0;  // inputs that share a scale; 0: all
  PackedNumbers codes = {};
  std::int32_t offset = 0;                  // of int8: added to the stored number, which is signed where this is 0
  std::optional<PackedNumbers> zeros = {};  // [rows, groups]; stored as the codes are
  std::int32_t zero_offset = 0;             // added to the stored zeros, modulo 2^bits
  std::int32_t zero = 0;                    // of int4 without `zeros`
  PackedScales scales = {};
  float unit = 1.0f;
  /// Where the inputs of a group do not stand side by side: the inputs in the order of their groups, each of which has
  /// `group` of them.
  std::vector<std::int32_t> input_order = {};
  bool byte_inputs = false;  // the checkpoint asks for inputs of 8 bits, with a scale for each row

  /// Inputs that share a scale where inputs are rounded to 8 bits, 0 for all of a row; nothing where products of
  /// integers cannot say what the matrix holds: E4M3, groups that are no powers of two, scales in single precision of
  /// groups.
  [[nodiscard]] std::optional<std::int64_t> byte_input_group() const;
  [[nodiscard]] std::int64_t groups() const { return group == 0 ? 1 : (cols + group - 1) / group; }
  /// Output `row`, inputs in the order of the groups: codes [cols] of int8 -128 to 127, of int4 0 to 15, else as they
  /// are; zeros [groups], of int8 raised by kByteZero; scales [groups].
  void read_row(std::int64_t row, const CodeRow& target) const;
  /// Output `row`'s values, inputs in their own order; target [cols].
  void decode_row(std::int64_t row, float* target) const;
};

}  // namespace millrace
