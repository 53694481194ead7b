// Where the values of a linear layer's weight come from, before a backend packs them: a view of stored tensors. A
// weight can be put together from pieces (q, k and v; gate and up), each with its own format, row order and strides, so
// that the quirks of checkpoints end here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "quant/coded_matrix.h"
#include "quant/codes.h"
#include "quant/format.h"
#include "recipe/input_skipping.h"

namespace millrace {

/// `rows` outputs of `cols` inputs. Does not own the data.
struct MatrixPiece {
  QuantFormat format = QuantFormat::f32;
  const std::byte* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;               // bytes from a row to the next; 0: rows lie densely one after the other
  std::int64_t column_stride = 0;            // bytes from an element to the next, plain formats only; 0: densely
  std::vector<std::int32_t> row_order = {};  // output r reads stored row row_order[r]; empty: the identity
  std::shared_ptr<const CodedMatrix> coded = {};  // of format codes; `data` and the strides then say nothing

  [[nodiscard]] std::int64_t stored_row(std::int64_t row) const {
    return row_order.empty() ? row : row_order[static_cast<std::size_t>(row)];
  }
};

/// The pieces' rows one below the other; all have the same number of columns.
struct MatrixSource {
  std::vector<MatrixPiece> pieces;
  std::vector<std::string> layers = {};  // whose weight it is, by their names in recipes; empty: of none that has one

  [[nodiscard]] std::int64_t rows() const {
    std::int64_t total = 0;
    for (const MatrixPiece& piece : pieces) total += piece.rows;
    return total;
  }
  [[nodiscard]] std::int64_t cols() const { return pieces.empty() ? 0 : pieces.front().cols; }
};

/// Decodes row `row` of the source into `target` [cols] floats, exactly as stored.
void read_row(const MatrixSource& source, std::int64_t row, float* target);

/// What a linear layer computes with. input f32: weights as stored, products and sums in f32. input bf16: the inputs
/// are rounded to bfloat16, plain weights too; sums in f32. With `codes` the weights are rounded to that format when
/// they are packed; unless it leaves them floats, inputs are rounded to 8 bits for each row and group (quant/codes.h),
/// sums within a group of integers are exact and those over groups, or of E4M3, in f32, and `input` says nothing. With
/// `integer_blocks` the same holds, without any rounding of weights, for those pieces that are stored in blocks of
/// integer codes (quant/integer_blocks.h), with a scale for 32 inputs of a row each, and for those that are stored as
/// codes and ask for such inputs (quant/coded_matrix.h); with `byte_inputs` for all that are stored as codes, as far as
/// products of integers can say what they hold. `skip`: what rows of answers (SequenceRows) leave out of their inputs,
/// before these are rounded; a backend lays the weight out for it. `chosen_up`: of a gate and its up, that rows of
/// answers may compute some outputs of the second half alone (GatedFfn); a backend may lay these out for it.
struct LinearFormat {
  DType input = DType::f32;
  std::optional<CodeFormat> codes = {};
  bool integer_blocks = false;
  bool byte_inputs = false;
  InputSkip skip = {};
  bool chosen_up = false;

  [[nodiscard]] bool wants_byte_inputs(const CodedMatrix& coded) const {
    return byte_inputs || (integer_blocks && coded.byte_inputs);
  }
};

}  // namespace millrace
