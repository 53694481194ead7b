#include "backend/matrix_source.h"

#include "core/check.h"
#include "quant/codec.h"

namespace millrace {

void read_row(const MatrixSource& source, std::int64_t row, float* target) {
  for (const MatrixPiece& piece : source.pieces) {
    if (row >= piece.rows) {
      row -= piece.rows;
      continue;
    }
    const std::int64_t stored_row = piece.stored_row(row);
    if (piece.coded) return piece.coded->decode_row(stored_row, target);
    const auto cols = static_cast<std::size_t>(piece.cols);
    const std::int64_t stride =
        piece.row_stride != 0 ? piece.row_stride : static_cast<std::int64_t>(format_bytes(piece.format, cols));
    const std::byte* start = piece.data + stored_row * stride;
    if (piece.column_stride == 0) {
      dequantize(piece.format, start, target, cols);
      return;
    }
    MILLRACE_CHECK(is_plain(piece.format), "strided columns of format {}", format_info(piece.format).name);
    for (std::int64_t col = 0; col < piece.cols; ++col) {
      dequantize(piece.format, start + col * piece.column_stride, target + col, 1);
    }
    return;
  }
  MILLRACE_CHECK(false, "row beyond the source's {} rows", source.rows());
}

}  // namespace millrace
