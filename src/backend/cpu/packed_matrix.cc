#include "backend/cpu/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>

#include "backend/cpu/chosen_up.h"
#include "backend/cpu/device_memory.h"
#include "backend/cpu/input_tiles.h"
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
    const std::int64_t stored = piece.stored_row(row);
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

/// Of a source of codes: the row within its piece.
std::int64_t stored_row(const MatrixSource& source, std::int64_t row) {
  for (const MatrixPiece& piece : source.pieces) {
    if (row < piece.rows) return piece.stored_row(row);
    row -= piece.rows;
  }
  MILLRACE_CHECK(false, "row beyond the source's {} rows", source.rows());
  return 0;
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

/// Inputs of 16 outputs, input after input, to pairs of inputs side by side for each output (PackedSegment::paired).
void pair_up(std::byte* panel, std::int64_t cols) {
  constexpr auto kOutputs = static_cast<std::size_t>(kPanelRows);
  for (std::int64_t k = 0; k < cols; k += 2, panel += 4 * kOutputs) {
    std::uint16_t apart[2 * kOutputs], together[2 * kOutputs];
    std::memcpy(apart, panel, sizeof apart);
    for (std::size_t o = 0; o < kOutputs; ++o) {
      together[2 * o] = apart[o];
      together[2 * o + 1] = apart[kOutputs + o];
    }
    std::memcpy(panel, together, sizeof together);
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
    if (segment.stored.paired && segment.stored.tile == 0)
      pair_up(target + k * kPanelRows * static_cast<std::int64_t>(sizeof(std::uint16_t)), end - k);
  }
}

/// The same into a tile of weights that lie input by input.
void pack_tiled_panel(const MatrixSource& source, const CpuMatrix::Segment& segment, std::int64_t panel,
                      std::byte* data) {
  const PackedSegment& stored = segment.stored;
  const std::int64_t of_input = kPanelRows * static_cast<std::int64_t>(format_info(stored.format).block_bytes);
  std::vector<std::byte> together(static_cast<std::size_t>(stored.cols * of_input));
  pack_panel(source, segment, panel, together.data());
  const std::int64_t inputs = stored.paired ? round_up(stored.cols, kPairBlock) : stored.cols;
  const TiledPanel place = tiled_panel(stored.rows, stored.tile, inputs, panel, of_input);
  for (std::int64_t k = 0; k < stored.cols; ++k) {
    std::memcpy(data + place.offset + k * place.stride, together.data() + k * of_input,
                static_cast<std::size_t>(of_input));
  }
}

std::size_t panel_bytes(const PackedSegment& segment) {
  const std::int64_t cols = segment.paired ? round_up(segment.cols, kPairBlock) : segment.cols;
  return format_bytes(segment.format, static_cast<std::size_t>(cols)) * kPanelRows;
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
  if (segment.integers) return packed_integer_bytes(*segment.integers) + read_behind(segment);
  return stored_bytes(segment) + read_behind(segment) +
         static_cast<std::size_t>(segment.panels() * segment.scale_groups * kPanelRows) * sizeof(float);
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

/// The outputs of a panel as they are stored: codes [cols][16], scales [groups][16].
Status pack_coded_e4m3_panel(const MatrixSource& source, const CpuMatrix::Segment& segment, std::int64_t panel,
                             std::byte* target, float* scales) {
  const auto groups = static_cast<std::size_t>(segment.scale_groups);
  std::vector<std::int8_t> codes(static_cast<std::size_t>(segment.stored.cols));
  std::vector<float> of_row(groups);
  std::vector<std::uint8_t> zeros(groups);
  float unit = 1.0f;
  const std::int64_t first = panel * kPanelRows, count = std::min(kPanelRows, segment.stored.rows - first);
  for (std::int64_t lane = 0; lane < count; ++lane) {
    const std::int64_t row = stored_row(source, segment.first_row + first + lane);
    segment.coded->read_row(row, {codes.data(), of_row.data(), zeros.data(), &unit});
    MILLRACE_CHECK_OK(check_scales(of_row, unit, row));
    for (std::size_t k = 0; k < codes.size(); ++k) {
      const auto code = static_cast<std::uint8_t>(codes[k]);
      if ((code & 0x7f) == 0x7f) return fail("weight {} of output {} is not a number: the weights are damaged", k, row);
      target[k * kPanelRows + static_cast<std::size_t>(lane)] = std::byte{code};
    }
    for (std::size_t g = 0; g < groups; ++g) scales[g * kPanelRows + static_cast<std::size_t>(lane)] = of_row[g] * unit;
  }
  return Ok{};
}

/// The outputs of a panel as floats.
Status pack_widened_panel(const MatrixSource& source, const CpuMatrix::Segment& segment, std::int64_t panel,
                          std::byte* target) {
  std::vector<float> values(static_cast<std::size_t>(segment.stored.cols));
  const std::int64_t first = panel * kPanelRows, count = std::min(kPanelRows, segment.stored.rows - first);
  for (std::int64_t lane = 0; lane < count; ++lane) {
    const std::int64_t row = segment.first_row + first + lane;
    read_row(source, row, values.data());
    MILLRACE_CHECK_OK(check_scales(values, 1.0f, row));
    const SourceRow of_values{QuantFormat::f32, reinterpret_cast<const std::byte*>(values.data()), sizeof(float)};
    fill_lane(of_values, segment.stored.format, 0, segment.stored.cols, target, lane);
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

/// values[order[i]] = values[i]
void restore_order(const std::vector<std::int32_t>& order, float* values) {
  const std::vector<float> ordered(values, values + order.size());
  for (std::size_t i = 0; i < order.size(); ++i) values[order[i]] = ordered[i];
}

/// The order of inputs that all pieces share; empty where one has another, or has to follow the inputs' own.
std::vector<std::int32_t> common_input_order(const MatrixSource& source) {
  if (source.pieces.empty() || !source.pieces.front().coded) return {};
  const std::vector<std::int32_t>& first = source.pieces.front().coded->input_order;
  const bool shared = std::ranges::all_of(source.pieces, [&](const MatrixPiece& piece) {
    return piece.coded && piece.coded->input_order == first && integer_layout(*piece.coded);
  });
  return shared ? first : std::vector<std::int32_t>();
}

/// Nothing where the codes cannot be multiplied as they are: their inputs may have an order that is not the matrix's.
std::optional<PackedIntegers> layout_of(const CodedMatrix& coded, const std::vector<std::int32_t>& input_order) {
  if (coded.input_order != input_order) return std::nullopt;
  return integer_layout(coded);
}

}  // namespace

void CpuMatrix::take_integer_inputs(Segment& segment) {
  const std::int64_t group = millrace::input_group(*segment.integers);
  if (input_group_ && *input_group_ != group) return;
  input_group_ = group;
  segment.integer_inputs = true;
}

void CpuMatrix::lay_out_rounded(const CodeFormat& format) {
  Segment all{.stored = {QuantFormat::codes, nullptr, rows_, cols_}};
  if (format.kind == CodeKind::e4m3) {
    all.stored.format = QuantFormat::f8_e4m3;
    all.stored.paired = layouts_.pairs && e4m3();
    all.scale_groups = 1;
  } else {
    all.integers = integer_layout(format, rows_, cols_);
    if (!format.float_inputs) take_integer_inputs(all);
  }
  segments_.push_back(all);
}

void CpuMatrix::add_piece(const MatrixPiece& piece, const LinearFormat& format, bool round) {
  MILLRACE_CHECK(piece.cols == cols_, "pieces of {} and {} columns", piece.cols, cols_);
  Segment segment{
      .stored = {round ? QuantFormat::bf16 : piece.format, nullptr, piece.rows, cols_, round && layouts_.pairs},
      .first_row = rows_};
  if (!segments_.empty()) segment.first_panel = segments_.back().first_panel + segments_.back().panels();
  rows_ += piece.rows;
  if (piece.coded) {
    const CodedMatrix& coded = *piece.coded;
    segment.coded = &coded;
    segment.integers = layout_of(coded, input_order_);
    if (coded.kind == CodeKind::e4m3) {
      segment.stored.format = QuantFormat::f8_e4m3;
      segment.stored.group = coded.group;
      segment.scale_groups = coded.groups();
    } else if (!segment.integers) {
      segment.stored.format = QuantFormat::f32;
    } else if (format.wants_byte_inputs(coded) && coded.byte_input_group()) {
      take_integer_inputs(segment);
    }
    segments_.push_back(segment);
    return;
  }
  Segment* last = segments_.empty() ? nullptr : &segments_.back();
  if (last != nullptr && last->coded == nullptr && last->stored.format == segment.stored.format) {
    last->stored.rows += piece.rows;
  } else {
    segments_.push_back(segment);
  }
}

void CpuMatrix::lay_out(const MatrixSource& source, LinearFormat format) {
  cols_ = source.cols();
  input_ = format.input;
  skip_ = format.skip;
  codes_ = format.codes;
  if (codes_) {
    rows_ = source.rows();
    lay_out_rounded(*codes_);
  } else {
    const bool round = format.input == DType::bf16 && std::ranges::all_of(source.pieces, [](const MatrixPiece& piece) {
                         return is_plain(piece.format);
                       });
    input_order_ = common_input_order(source);
    for (const MatrixPiece& piece : source.pieces) add_piece(piece, format, round);
  }
  for (Segment& segment : segments_) {
    const auto blocks = format.integer_blocks ? integer_blocks(segment.stored.format) : std::nullopt;
    if (blocks) {
      segment.integers = integer_layout(*blocks, segment.stored.rows, cols_);
      take_integer_inputs(segment);
    }
  }
  if (skip_.of_inputs() && segments_.size() == 1) tile(segments_.front());
  if (format.chosen_up && segments_.size() == 1) part_up();
  for (const Segment& segment : segments_) bytes_ += segment_bytes(segment);
}

void CpuMatrix::tile(Segment& segment) const {
  if (segment.coded != nullptr && !segment.integers) return;  // codes that become floats
  if (segment.integers) {
    PackedIntegers& codes = *segment.integers;
    constexpr std::int64_t kMostOfGroup = 128;  // SkipIntegerTask
    const bool whole = codes.scales == nullptr && codes.kind == CodeKind::int8;
    if (!layouts_.code_tiles || !segment.integer_inputs ||
        (!whole && (codes.scales == nullptr || codes.group > kMostOfGroup)))
      return;
    codes.tile = tile_outputs(codes.rows, code_panel_bytes(codes), layouts_.threads);
  } else if (segment.stored.format == QuantFormat::f32 || segment.stored.format == QuantFormat::bf16 ||
             segment.stored.format == QuantFormat::f16) {
    const auto bytes = static_cast<std::int64_t>(format_info(segment.stored.format).block_bytes);
    segment.stored.tile = tile_outputs(segment.stored.rows, kPanelRows * bytes, layouts_.threads);
  }
}

std::size_t CpuMatrix::packed_bytes(const MatrixSource& source, LinearFormat format, CpuLayouts layouts) {
  CpuMatrix matrix(layouts);
  matrix.lay_out(source, format);
  return matrix.bytes();
}

std::unique_ptr<CpuMatrix> CpuMatrix::laid_out(const MatrixSource& source, LinearFormat format, CpuLayouts layouts) {
  std::unique_ptr<CpuMatrix> matrix(new CpuMatrix(layouts));
  matrix->lay_out(source, format);
  return matrix;
}

Result<std::unique_ptr<CpuMatrix>> CpuMatrix::pack(const MatrixSource& source, LinearFormat format, CpuLayouts layouts,
                                                   ThreadPool& pool, DeviceArena& arena) {
  std::unique_ptr<CpuMatrix> matrix(new CpuMatrix(layouts));
  matrix->lay_out(source, format);
  MILLRACE_TRY(matrix->memory_, arena.allocate(matrix->bytes_, "a weight"));

  auto* next = static_cast<std::byte*>(matrix->memory_.get());
  for (Segment& segment : matrix->segments_) {
    if (segment.integers) {
      place_integers(*segment.integers, next);
    } else {
      segment.stored.data = next;
      if (segment.scale_groups > 0) {
        const auto* scales = reinterpret_cast<const float*>(next + stored_bytes(segment));
        (segment.row_scaled() ? segment.stored.row_scales : segment.stored.group_scales) = scales;
      }
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
    std::byte* target = memory + static_cast<std::size_t>(panel) * panel_bytes(segment.stored);
    const std::int64_t end = std::min((panel + 1) * kPanelRows, segment.stored.rows);
    if (segment.scale_groups > 0) {
      float* scales =
          reinterpret_cast<float*>(memory + stored_bytes(segment)) + panel * segment.scale_groups * kPanelRows;
      note(segment.coded != nullptr ? pack_coded_e4m3_panel(source, segment, panel, target, scales)
                                    : pack_e4m3_panel(source, segment, panel, target, scales));
    } else if (codes_) {
      note(pack_integer_panel(*codes_, source, segment.first_row, *segment.integers, panel));
    } else if (segment.coded != nullptr && segment.integers) {
      for (std::int64_t row = panel * kPanelRows; row < end; ++row) {
        note(pack_coded_row(*segment.coded, stored_row(source, segment.first_row + row), *segment.integers, row));
      }
    } else if (segment.coded != nullptr) {
      note(pack_widened_panel(source, segment, panel, target));
    } else if (segment.integers) {
      for (std::int64_t row = panel * kPanelRows; row < end; ++row) {
        pack_block_row(segment.stored.format, find_row(source, segment.first_row + row).start, *segment.integers, row);
      }
    } else if (segment.stored.tile > 0) {
      pack_tiled_panel(source, segment, panel, memory);
    } else if (is_plain(segment.stored.format)) {
      pack_panel(source, segment, panel, target);
    } else {
      pack_rows(source, segment, panel, memory);
    }
    if (segment.row_bytes > 0) part_outputs(segment, memory + panel * kPanelRows * segment.row_bytes);
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
    MILLRACE_CHECK(segment.row_bytes == 0, "output {} lies by itself: no table has such", row);
    if (segment.integers) {
      decode_integer_row(*segment.integers, inside, target);
      if (!input_order_.empty()) restore_order(input_order_, target);
      return;
    }
    const auto columns = static_cast<std::size_t>(cols_);
    if (!is_plain(stored.format)) {
      const std::size_t row_bytes = format_bytes(stored.format, columns);
      dequantize(stored.format, stored.data + static_cast<std::size_t>(inside) * row_bytes, target, columns);
      return;
    }
    const std::size_t size = format_info(stored.format).block_bytes;
    if (stored.tile > 0) {
      const auto of_element = static_cast<std::int64_t>(size);
      const TiledPanel place =
          tiled_panel(stored.rows, stored.tile, stored.paired ? round_up(cols_, kPairBlock) : cols_,
                      inside / kPanelRows, kPanelRows * of_element);
      const std::byte* element = stored.data + place.offset + inside % kPanelRows * of_element;
      for (std::size_t k = 0; k < columns; ++k, element += place.stride) {
        dequantize(stored.format, element, target + k, 1);
      }
      return;
    }
    const std::byte* panel = stored.data + static_cast<std::size_t>(inside / kPanelRows) * panel_bytes(stored);
    const std::byte* lane = panel + static_cast<std::size_t>(inside % kPanelRows) * size;
    for (std::size_t k = 0; k < columns; ++k) {
      const std::byte* element = lane + k * kPanelRows * size;
      if (stored.paired && stored.format == QuantFormat::bf16) {
        element = panel + ((k / 2 * kPanelRows + static_cast<std::size_t>(inside % kPanelRows)) * 2 + k % 2) * size;
      }
      dequantize(stored.format, element, target + k, 1);
      if (stored.row_scales != nullptr) target[k] *= stored.row_scales[inside];
      if (stored.group_scales != nullptr) {
        const std::int64_t group = static_cast<std::int64_t>(k) / stored.group;
        target[k] *=
            stored
                .group_scales[(inside / kPanelRows * segment.scale_groups + group) * kPanelRows + inside % kPanelRows];
      }
    }
    return;
  }
  MILLRACE_CHECK(false, "row {} of {}", row, rows_);
}

}  // namespace millrace
