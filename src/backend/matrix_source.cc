#include "backend/matrix_source.h"

#include <cstring>

#include "core/check.h"
#include "core/float16.h"
#include "quant/codec.h"

namespace millrace {

namespace {

float read_plain(QuantFormat format, const std::byte* element) {
  if (format == QuantFormat::f32) {
    float value = 0.0f;
    std::memcpy(&value, element, sizeof value);
    return value;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, element, sizeof bits);
  return format == QuantFormat::bf16 ? bf16_to_float(bits) : f16_to_float(bits);
}

}  // namespace

void read_row(const MatrixSource& source, std::int64_t row, float* target) {
  for (const MatrixPiece& piece : source.pieces) {
    if (row >= piece.rows) {
      row -= piece.rows;
      continue;
    }
    const std::int64_t stored_row = piece.row_order.empty() ? row : piece.row_order[static_cast<std::size_t>(row)];
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
      target[col] = read_plain(piece.format, start + col * piece.column_stride);
    }
    return;
  }
  MILLRACE_CHECK(false, "row beyond the source's {} rows", source.rows());
}

}  // namespace millrace
