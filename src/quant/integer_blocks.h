// GGUF's block formats as integer codes, so that products need not decode them: every element is
//
//   scale * factor * code + minimum * minimum factor
//
// with a scale and a minimum in half precision for some inputs, and small integer factors for fewer. To the bit what
// the codec decodes, where factors are multiplied first.
//
// MXFP4's powers of two reach farther than a half does. Its rows have a scale of their own, and a block that is smaller
// than 2^-39 of the row's largest becomes zero: far below what a sum over the row keeps in single precision.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "quant/codes.h"
#include "quant/format.h"

namespace millrace {

struct IntegerBlocks {
  CodeKind kind = CodeKind::int8;  // int4: codes 0 to 15 less `zero`; e2m1: with a scale for the row
  std::int32_t zero = 0;
  std::int32_t group = 0;  // inputs that share a factor
  std::int32_t super = 0;  // inputs that share a scale; equal to `group` where there are no factors
  bool minimums = false;

  [[nodiscard]] bool factors() const { return super != group; }
};

/// Nothing for plain formats and for Q2_K (its minimums are of 16 inputs).
std::optional<IntegerBlocks> integer_blocks(QuantFormat format);

/// Where the parts of a row of `cols` elements go. Those that the format lacks may be null.
struct SplitRow {
  std::int8_t* codes = nullptr;            // [cols]
  std::uint16_t* scales = nullptr;         // [cols / super], halves
  std::uint16_t* minimums = nullptr;       // [cols / super], halves; what is added, so mostly negative
  std::int8_t* factors = nullptr;          // [cols / group]
  std::int8_t* minimum_factors = nullptr;  // [cols / group]
  float* row_scale = nullptr;
};

/// `row`: whole blocks of a format that integer_blocks() knows.
void split_row(QuantFormat format, const std::byte* row, std::int64_t cols, const SplitRow& target);

}  // namespace millrace
