// Integer weights in the kernels' layout (PackedIntegers in kernel_table.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cpu/kernel_table.h"
#include "backend/matrix_source.h"
#include "core/result.h"
#include "quant/integer.h"

namespace millrace {

/// Bytes that the codes, scales and zero points of a matrix take together.
std::size_t packed_integer_bytes(const IntegerFormat& format, std::int64_t rows, std::int64_t cols);

/// The layout of a matrix that lies at `memory`, aligned to 64 bytes.
PackedIntegers lay_out_integers(const IntegerFormat& format, std::int64_t rows, std::int64_t cols,
                                const std::byte* memory);

/// Rounds the 16 outputs of panel `panel` of `source` and writes them into the memory of the layout. Panels may be
/// packed by several threads at once. Error: a weight is not finite.
Status pack_integer_panel(const IntegerFormat& format, const MatrixSource& source, const PackedIntegers& layout,
                          std::int64_t panel);

/// Output `row`'s values, target [cols].
void decode_integer_row(const PackedIntegers& weight, std::int64_t row, float* target);

}  // namespace millrace
