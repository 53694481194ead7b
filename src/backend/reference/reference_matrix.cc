#include "backend/reference/reference_matrix.h"

#include <algorithm>
#include <cmath>
#include <new>

#include "core/float16.h"
#include "quant/integer_blocks.h"

namespace millrace {

namespace {

bool has_plain_weights(const MatrixSource& source) {
  return std::all_of(source.pieces.begin(), source.pieces.end(),
                     [](const MatrixPiece& p) { return is_plain(p.format); });
}

/// The weights of an output become the values of their codes.
Status round_to_codes(const CodeFormat& format, std::int64_t cols, float* values) {
  for (std::int64_t c = 0; c < cols; ++c) {
    if (!std::isfinite(values[c]))
      return fail("a weight is not finite: it cannot be rounded to {}", code_format_name(format));
  }
  const auto groups = static_cast<std::size_t>(format.groups(cols));
  std::vector<std::int8_t> codes(static_cast<std::size_t>(cols));
  std::vector<float> scales(groups);
  std::vector<std::uint8_t> zeros(groups);
  float row_scale = 1.0f;
  quantize_row(format, values, cols, {codes.data(), scales.data(), zeros.data(), &row_scale});
  for (std::int64_t c = 0; c < cols; ++c) {
    const auto group = static_cast<std::size_t>(format.group == 0 ? 0 : c / format.group);
    const float step = step_of_code(format.kind, codes[static_cast<std::size_t>(c)], zeros[group]);
    values[c] = scales[group] * step * row_scale;
  }
  return Ok{};
}

/// Outputs that are stored in blocks of integer codes, or as codes for inputs of 8 bits.
void set_block_groups(const MatrixSource& source, const LinearFormat& format, ReferenceMatrix& matrix) {
  std::int64_t row = 0;
  for (const MatrixPiece& piece : source.pieces) {
    std::optional<std::int64_t> group;
    if (format.integer_blocks && integer_blocks(piece.format)) group = kIntegerBlock;
    if (piece.coded && format.wants_byte_inputs(*piece.coded)) group = piece.coded->byte_input_group();
    for (std::int64_t end = row + piece.rows; row < end; ++row) {
      if (group) matrix.set_input_group(row, *group);
      matrix.set_coded(row, piece.coded);
    }
  }
}

MatrixSource bf16_source(const std::vector<std::uint16_t>& values, std::int64_t rows, std::int64_t cols) {
  return {.pieces = {{.format = QuantFormat::bf16,
                      .data = reinterpret_cast<const std::byte*>(values.data()),
                      .rows = rows,
                      .cols = cols}}};
}

}  // namespace

void round_inputs(const LinearFormat& format, const std::optional<std::int64_t>& group,
                  std::span<const std::int32_t> order, const float* x, std::vector<float>& target) {
  std::copy_n(x, target.size(), target.begin());
  if (format.codes && format.codes->kind == CodeKind::e4m3 && !format.codes->float_inputs) {
    float scale = 0.0f;
    round_inputs_to_e4m3(x, static_cast<std::int64_t>(target.size()), target.data(), &scale);
    for (float& value : target) value *= scale;
    return;
  }
  if (group) {
    const auto cols = static_cast<std::int64_t>(target.size()), step = *group == 0 ? cols : *group;
    std::vector<std::int8_t> codes(target.size());
    std::vector<float> scales(target.size());
    for (std::size_t i = 0; i < order.size(); ++i) target[i] = x[order[i]];
    quantize_inputs(target.data(), cols, *group, codes.data(), scales.data());
    for (std::int64_t c = 0; c < cols; ++c) {
      const auto i = static_cast<std::size_t>(c), place = order.empty() ? i : static_cast<std::size_t>(order[i]);
      target[place] = scales[static_cast<std::size_t>(c / step)] * static_cast<float>(codes[i]);
    }
  } else if (format.input == DType::bf16) {
    for (float& value : target) value = round_to_bf16(value);
  }
}

Result<std::unique_ptr<PackedMatrix>> pack_reference(const MatrixSource& source, const LinearFormat& format) {
  try {
    auto matrix = std::make_unique<ReferenceMatrix>(source.rows(), source.cols(), format);
    const bool round_weights = format.input == DType::bf16 && has_plain_weights(source);
    for (std::int64_t r = 0; r < source.rows(); ++r) {
      read_row(source, r, matrix->row(r));
      if (format.codes) {
        MILLRACE_CHECK_OK(round_to_codes(*format.codes, source.cols(), matrix->row(r)));
        if (!format.codes->float_inputs) matrix->set_input_group(r, format.codes->input_group());
      }
      if (format.codes || !round_weights) continue;
      for (std::int64_t c = 0; c < source.cols(); ++c) matrix->row(r)[c] = round_to_bf16(matrix->row(r)[c]);
    }
    if (!format.codes) set_block_groups(source, format, *matrix);
    return std::unique_ptr<PackedMatrix>(std::move(matrix));
  } catch (const std::bad_alloc&) {
    return fail("cannot allocate {} bytes for a weight", reference_bytes(source));
  }
}

std::size_t reference_bytes(const MatrixSource& source) {
  return static_cast<std::size_t>(source.rows() * source.cols()) * sizeof(float);
}

Result<std::unique_ptr<PackedNeurons>> pack_reference_neurons(const NeuronSource& source) {
  auto packed = std::make_unique<ReferenceNeurons>();
  packed->choice = source.choice;
  MILLRACE_TRY(packed->gate_up, pack_reference(source.gate_up, source.gate_up_format));
  MILLRACE_TRY(packed->down, pack_reference(source.down, source.down_format));
  if (const NeuronProfile* profile = source.choice.profile.get()) {
    MILLRACE_TRY(packed->predictor_in, pack_reference(bf16_source(profile->in, profile->rank, profile->inputs), {}));
    MILLRACE_TRY(packed->predictor_out,
                 pack_reference(bf16_source(profile->out, profile->neurons(), profile->rank), {}));
  }
  return std::unique_ptr<PackedNeurons>(std::move(packed));
}

std::size_t reference_bytes(const NeuronSource& source) {
  std::size_t bytes = reference_bytes(source.gate_up) + reference_bytes(source.down);
  if (const NeuronProfile* profile = source.choice.profile.get()) {
    bytes += static_cast<std::size_t>(profile->rank * (profile->inputs + profile->neurons())) * sizeof(float);
  }
  return bytes;
}

}  // namespace millrace
