#include "backend/cpu/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>

#include "backend/cpu/device_memory.h"
#include "backend/cpu/packed_integers.h"
#include "core/check.h"
#include "core/float16.h"
#include "quant/codec.h"
#include "quant/small_float.h"

namespace millrace {

namespace {

/// Where the elements of an output lie in the source.
struct SourceRow {
  QuantFormat format = QuantFormat::f32;
  const std::byte* start = nullptr;
  std::int64_t step = 0;  // bytes from an element to the next, plain formats
};

SourceRow find_row(const MatrixSource& source, std::int64_t row) {
  for (const MatrixPiece& piece : source.pieces) {
    if (row >= piece.rows) {
      row -= piece.rows;
      continue;
    }
    const std::int64_t stored = piece.row_order.empty() ? row : piece.row_order[static_cast<std::size_t>(row)];
    const std::int64_t stride =
        piece.row_stride != 0
            ? piece.row_stride
            : static_cast<std::int64_t>(format_bytes(piece.format, static_cast<std::size_t>(piece.cols)));
    MILLRACE_CHECK(piece.column_stride == 0 || is_plain(piece.format), "strided columns of format {}",
                   format_info(piece.format).name);
    const std::int64_t step = piece.column_stride != 0
                                  ? piece.column_stride
                                  : static_cast<std::int64_t>(format_info(piece.format).block_bytes);
    return {piece.format, piece.data + stored * stride, step};
  }
  MILLRACE_CHECK(false, "row beyond the source's {} rows", source.rows());
  return {};
}

template <typename Element>
Element read_element(const std::byte* p) {
  Element value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

/// Moves columns [begin, end) of one output into its lane of a panel.
template <typename Stored, typename Packed, typename Convert>
void fill_lane(const SourceRow& row, std::int64_t begin, std::int64_t end, Packed* lane, Convert convert) {
  const std::byte* p = row.start + begin * row.step;
  if (row.step == sizeof(Stored)) {  // a constant step, for the compiler
    for (std::int64_t k = begin; k < end; ++k, p += sizeof(Stored))
      lane[k * kPanelRows] = convert(read_element<Stored>(p));
  } else {
    for (std::int64_t k = begin; k < end; ++k, p += row.step) lane[k * kPanelRows] = convert(read_element<Stored>(p));
  }
}

void fill_lane(const SourceRow& row, QuantFormat packed, std::int64_t begin, std::int64_t end, std::byte* panel,
               std::int64_t index) {
  if (packed == QuantFormat::f32) {
    fill_lane<float>(row, begin, end, reinterpret_cast<float*>(panel) + index, [](float v) { return v; });
    return;
  }
  if (packed == QuantFormat::f8_e4m3) {
    fill_lane<std::uint8_t>(row, begin, end, reinterpret_cast<std::uint8_t*>(panel) + index,
                            [](std::uint8_t bits) { return bits; });
    return;
  }
  std::uint16_t* lane = reinterpret_cast<std::uint16_t*>(panel) + index;
  if (row.format == QuantFormat::f8_e4m3) {
    fill_lane<std::uint8_t>(row, begin, end, lane,
                            [](std::uint8_t bits) { return float_to_bf16(e4m3_to_float(bits)); });
  } else if (packed == row.format) {
    fill_lane<std::uint16_t>(row, begin, end, lane, [](std::uint16_t bits) { return bits; });
  } else if (row.format == QuantFormat::f32) {
    fill_lane<float>(row, begin, end, lane, float_to_bf16);
  } else {
    fill_lane<std::uint16_t>(row, begin, end, lane,
                             [](std::uint16_t bits) { return float_to_bf16(f16_to_float(bits)); });
  }
}

/// Reads and writes cache lines whole before going on: 64 inputs of 16 outputs.
void pack_panel(const MatrixSource& source, const CpuMatrix::Segment& segment, std::int64_t panel, std::byte* target) {
  constexpr std::int64_t kColumns = 64;
  const std::int64_t first = panel * kPanelRows;
  const std::int64_t count = std::min(kPanelRows, segment.stored.rows - first);
  SourceRow rows[kPanelRows];
  for (std::int64_t r = 0; r < count; ++r) rows[r] = find_row(source, segment.first_row + first + r);
  for (std::int64_t k = 0; k < segment.stored.cols; k += kColumns) {
    const std::int64_t end = std::min(k + kColumns, segment.stored.cols);
    for (std::int64_t r = 0; r < count; ++r) fill_lane(rows[r], segment.stored.format, k, end, target, r);
  }
}

std::size_t panel_bytes(const PackedSegment& segment) {
  return format_bytes(segment.format, static_cast<std::size_t>(segment.cols)) * kPanelRows;
}

/// Of the weights themselves.
std::size_t stored_bytes(const CpuMatrix::Segment& segment) {
  const PackedSegment& stored = segment.stored;
  const std::size_t bytes = is_plain(stored.format)
                                ? panel_bytes(stored) * static_cast<std::size_t>(segment.panels())
                                : panel_bytes(stored) / kPanelRows * static_cast<std::size_t>(stored.rows);
  return static_cast<std::size_t>(round_up(static_cast<std::int64_t>(bytes), 64));
}

std::size_t segment_bytes(const CpuMatrix::Segment& segment) {
  if (segment.integers) return packed_integer_bytes(*segment.integers);
  const std::size_t scales =
      segment.scaled ? static_cast<std::size_t>(segment.panels() * kPanelRows) * sizeof(float) : 0;
  return stored_bytes(segment) + scales;
}

/// Rounds the outputs of a panel to E4M3: codes [cols][16] and a scale each.
Status pack_e4m3_panel(const MatrixSource& source, const CpuMatrix::Segment& segment, std::int64_t panel,
                       std::byte* target, float* scales) {
  std::vector<float> values(static_cast<std::size_t>(segment.stored.cols));
  std::vector<std::int8_t> codes(values.size());
  std::uint8_t zero = 0;
  const std::int64_t first = panel * kPanelRows, count = std::min(kPanelRows, segment.stored.rows - first);
  for (std::int64_t lane = 0; lane < count; ++lane) {
    read_row(source, segment.first_row + first + lane, values.data());
    MILLRACE_CHECK_OK(check_finite(values, CodeFormat{.kind = CodeKind::e4m3}, segment.first_row + first + lane));
    quantize_row({.kind = CodeKind::e4m3}, values.data(), segment.stored.cols, {codes.data(), scales + lane, &zero});
    for (std::size_t k = 0; k < codes.size(); ++k) {
      target[static_cast<std::int64_t>(k) * kPanelRows + lane] = static_cast<std::byte>(codes[k]);
    }
  }
  return Ok{};
}

void pack_rows(const MatrixSource& source, const CpuMatrix::Segment& segment, std::int64_t panel, std::byte* data) {
  const std::size_t row_bytes = panel_bytes(segment.stored) / kPanelRows;
  const std::int64_t end = std::min((panel + 1) * kPanelRows, segment.stored.rows);
  for (std::int64_t row = panel * kPanelRows; row < end; ++row) {
    std::memcpy(data + static_cast<std::size_t>(row) * row_bytes, find_row(source, segment.first_row + row).start,
                row_bytes);
  }
}

}  // namespace

void CpuMatrix::lay_out(const MatrixSource& source, LinearFormat format) {
  cols_ = source.cols();
  input_ = format.input;
  codes_ = format.codes;
  if (codes_ && codes_->kind == CodeKind::e4m3) {
    rows_ = source.rows();
    segments_.push_back({.stored = {QuantFormat::f8_e4m3, nullptr, rows_, cols_}, .scaled = true});
    bytes_ = segment_bytes(segments_.back());
    return;
  }
  if (codes_) {
    rows_ = source.rows();
    Segment all{.stored = {QuantFormat::u8, nullptr, rows_, cols_}, .integers = integer_layout(*codes_, rows_, cols_)};
    input_group_ = millrace::input_group(*all.integers);
    bytes_ = segment_bytes(all);
    segments_.push_back(all);
    return;
  }
  const bool round = format.input == DType::bf16 && std::all_of(source.pieces.begin(), source.pieces.end(),
                                                                [](const auto& p) { return is_plain(p.format); });
  for (const MatrixPiece& piece : source.pieces) {
    MILLRACE_CHECK(piece.cols == cols_, "pieces of {} and {} columns", piece.cols, cols_);
    const QuantFormat stored = round ? QuantFormat::bf16 : piece.format;
    if (segments_.empty() || segments_.back().stored.format != stored) {
      const std::int64_t panel = segments_.empty() ? 0 : segments_.back().first_panel + segments_.back().panels();
      segments_.push_back({.stored = {stored, nullptr, 0, cols_}, .first_row = rows_, .first_panel = panel});
    }
    segments_.back().stored.rows += piece.rows;
    rows_ += piece.rows;
  }
  for (Segment& segment : segments_) {
    const auto blocks = format.integer_blocks ? integer_blocks(segment.stored.format) : std::nullopt;
    if (blocks) {
      segment.integers = integer_layout(*blocks, segment.stored.rows, cols_);
      input_group_ = millrace::input_group(*segment.integers);
    }
    bytes_ += segment_bytes(segment);
  }
}

std::size_t CpuMatrix::packed_bytes(const MatrixSource& source, LinearFormat format) {
  CpuMatrix matrix;
  matrix.lay_out(source, format);
  return matrix.bytes();
}

Result<std::unique_ptr<CpuMatrix>> CpuMatrix::pack(const MatrixSource& source, LinearFormat format, ThreadPool& pool) {
  std::unique_ptr<CpuMatrix> matrix(new CpuMatrix);
  matrix->lay_out(source, format);
  MILLRACE_TRY(matrix->memory_, allocate_device_memory(matrix->bytes_, "a weight"));

  auto* next = static_cast<std::byte*>(matrix->memory_.get());
  for (Segment& segment : matrix->segments_) {
    if (segment.integers) {
      place_integers(*segment.integers, next);
    } else {
      segment.stored.data = next;
      if (segment.scaled) segment.stored.row_scales = reinterpret_cast<float*>(next + stored_bytes(segment));
    }
    MILLRACE_CHECK_OK(matrix->pack_segment(source, segment, next, pool));
    next += segment_bytes(segment);
  }
  return matrix;
}

Status CpuMatrix::pack_segment(const MatrixSource& source, const Segment& segment, std::byte* memory,
                               ThreadPool& pool) const {
  std::mutex mutex;
  std::optional<Error> error;
  const auto note = [&](Status status) {
    if (status.ok()) return;
    const std::lock_guard lock(mutex);
    if (!error) error = std::move(status).error();
  };
  pool.run(segment.panels(), [&](std::int64_t panel, int) {
    if (segment.scaled) {
      std::byte* target = memory + static_cast<std::size_t>(panel) * panel_bytes(segment.stored);
      float* scales = reinterpret_cast<float*>(memory + stored_bytes(segment)) + panel * kPanelRows;
      note(pack_e4m3_panel(source, segment, panel, target, scales));
    } else if (codes_) {
      note(pack_integer_panel(*codes_, source, segment.first_row, *segment.integers, panel));
    } else if (segment.integers) {
      const std::int64_t end = std::min((panel + 1) * kPanelRows, segment.stored.rows);
      for (std::int64_t row = panel * kPanelRows; row < end; ++row) {
        pack_block_row(segment.stored.format, find_row(source, segment.first_row + row).start, *segment.integers, row);
      }
    } else if (is_plain(segment.stored.format)) {
      pack_panel(source, segment, panel, memory + static_cast<std::size_t>(panel) * panel_bytes(segment.stored));
    } else {
      pack_rows(source, segment, panel, memory);
    }
  });
  if (error) return *std::move(error);
  return Ok{};
}

std::int64_t CpuMatrix::panels() const {
  return segments_.empty() ? 0 : segments_.back().first_panel + segments_.back().panels();
}

std::int64_t CpuMatrix::twin_panel() const {
  const std::int64_t half = rows_ / 2, half_panels = (half + kPanelRows - 1) / kPanelRows;
  if (rows_ != 2 * half || panels() != 2 * half_panels) return 0;
  for (const Segment& segment : segments_) {
    const bool second = segment.first_row >= half;
    const std::int64_t row = segment.first_row - (second ? half : 0);
    if (row != kPanelRows * (segment.first_panel - (second ? half_panels : 0))) return 0;
    // A panel that reaches over the middle belongs to neither half.
    if (!second && segment.first_row + segment.stored.rows > half && half % kPanelRows != 0) return 0;
  }
  return half_panels;
}

void CpuMatrix::decode_row(std::int64_t row, float* target) const {
  for (const Segment& segment : segments_) {
    const PackedSegment& stored = segment.stored;
    const std::int64_t inside = row - segment.first_row;
    if (inside >= stored.rows) continue;
    if (segment.integers) {
      decode_integer_row(*segment.integers, inside, target);
      return;
    }
    const auto columns = static_cast<std::size_t>(cols_);
    if (!is_plain(stored.format)) {
      const std::size_t row_bytes = format_bytes(stored.format, columns);
      dequantize(stored.format, stored.data + static_cast<std::size_t>(inside) * row_bytes, target, columns);
      return;
    }
    const std::byte* panel = stored.data + static_cast<std::size_t>(inside / kPanelRows) * panel_bytes(stored);
    const std::size_t size = format_info(stored.format).block_bytes;
    const std::byte* lane = panel + static_cast<std::size_t>(inside % kPanelRows) * size;
    for (std::size_t k = 0; k < columns; ++k) {
      dequantize(stored.format, lane + k * kPanelRows * size, target + k, 1);
      if (stored.row_scales != nullptr) target[k] *= stored.row_scales[inside];
    }
    return;
  }
  MILLRACE_CHECK(false, "row {} of {}", row, rows_);
}

}  // namespace millrace
