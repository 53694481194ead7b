// Integer weights in the kernels' layout (PackedIntegers in kernel_table.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "backend/cpu/kernel_table.h"
#include "backend/matrix_source.h"
#include "core/result.h"
#include "quant/coded_matrix.h"
#include "quant/codes.h"
#include "quant/integer_blocks.h"

namespace millrace {

/// A layout of `rows` outputs without memory: what there is of it, and how much.
PackedIntegers integer_layout(const CodeFormat& format, std::int64_t rows, std::int64_t cols);
PackedIntegers integer_layout(const IntegerBlocks& blocks, std::int64_t rows, std::int64_t cols);
/// Nothing where the layout cannot say what the matrix holds: E4M3, and groups that are no multiple of kInputBlock.
std::optional<PackedIntegers> integer_layout(const CodedMatrix& matrix);

/// Bytes that all parts take together.
std::size_t packed_integer_bytes(const PackedIntegers& layout);

/// Points the parts into zeroed memory of packed_integer_bytes(), aligned to 64 bytes.
void place_integers(PackedIntegers& layout, std::byte* memory);

/// Whether the weights of output `row` can be rounded. Error: one is not finite.
Status check_finite(std::span<const float> weights, const CodeFormat& format, std::int64_t row);

/// Whether the scales of output `row` are numbers. Error: one is not finite.
Status check_scales(std::span<const float> scales, float row_scale, std::int64_t row);

/// Rounds the 16 outputs of panel `panel` and writes them into the memory of the layout. `first_row`: output 0 of the
/// layout in the source. Panels may be packed by several threads at once. Error: a weight is not finite.
Status pack_integer_panel(const CodeFormat& format, const MatrixSource& source, std::int64_t first_row,
                          const PackedIntegers& layout, std::int64_t panel);

/// The same without rounding: one output's stored blocks.
void pack_block_row(QuantFormat format, const std::byte* blocks, const PackedIntegers& layout, std::int64_t row);

/// Output `stored_row` of a matrix becomes output `row` of its layout. Scales of groups that are no floats become
/// halves and a power of two for the output, which is exact where they lie within 2^28 of the largest. Error: a scale
/// is not finite.
Status pack_coded_row(const CodedMatrix& matrix, std::int64_t stored_row, const PackedIntegers& layout,
                      std::int64_t row);

/// Output `row`'s values, target [cols].
void decode_integer_row(const PackedIntegers& weight, std::int64_t row, float* target);

/// Inputs that share a scale of theirs in products with the weight; 0: all of a row.
std::int64_t input_group(const PackedIntegers& weight);

}  // namespace millrace
