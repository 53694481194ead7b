#include "backend/cuda/cuda_matrix.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <span>
#include <utility>

#include "core/float16.h"
#include "quant/codes.h"
#include "quant/integer_blocks.h"

namespace millrace::cuda {

namespace {

constexpr std::size_t kAlign = 256;

std::size_t aligned(std::size_t bytes) {
  return (bytes + kAlign - 1) / kAlign * kAlign;
}

Storage storage_of(CodeKind kind) {
  switch (kind) {
    case CodeKind::int8:
      return Storage::int8;
    case CodeKind::int4:
      return Storage::int4;
    case CodeKind::e2m1:
      return Storage::e2m1;
    case CodeKind::e4m3:
      break;
  }
  return Storage::e4m3;
}

Rounding float_rounding(const LinearFormat& format) {
  return format.input == DType::bf16 ? Rounding::bf16 : Rounding::none;
}

/// Weights that are rounded as they are packed.
SegmentPlan plan_codes(const CodeFormat& codes, const LinearFormat& format) {
  SegmentPlan plan;
  plan.storage = storage_of(codes.kind);
  plan.group = codes.group;
  plan.scales = true;
  plan.half_scales = codes.four_bits();
  plan.zeros = codes.kind == CodeKind::int4;
  plan.row_scales = codes.kind == CodeKind::e2m1;
  if (codes.float_inputs) {
    plan.rounding = float_rounding(format);
  } else if (codes.kind == CodeKind::e4m3) {
    plan.rounding = Rounding::e4m3;
  } else {
    plan.rounding = Rounding::int8;
    plan.input_group = static_cast<std::int32_t>(codes.input_group());
  }
  return plan;
}

/// Weights that come as codes. Groups that are no whole eights of inputs become floats.
SegmentPlan plan_coded(const CodedMatrix& coded, const LinearFormat& format) {
  SegmentPlan plan;
  plan.rounding = float_rounding(format);
  if (format.wants_byte_inputs(coded)) {
    if (const std::optional<std::int64_t> group = coded.byte_input_group()) {
      plan.rounding = Rounding::int8;
      plan.input_group = static_cast<std::int32_t>(*group);
    }
  }
  if (coded.group % 8 != 0) return plan;
  plan.ordered = !coded.input_order.empty();
  plan.storage = storage_of(coded.kind);
  plan.group = static_cast<std::int32_t>(coded.group);
  plan.scales = true;
  plan.row_scales = true;
  plan.zeros = coded.kind == CodeKind::int4 || (coded.kind == CodeKind::int8 && coded.zeros);
  plan.zero_bias = coded.kind == CodeKind::int8 ? CodedMatrix::kByteZero : 0;
  return plan;
}

SegmentPlan plan_piece(const MatrixPiece& piece, const LinearFormat& format, bool all_plain) {
  if (piece.coded) return plan_coded(*piece.coded, format);
  SegmentPlan plan;
  plan.rounding = float_rounding(format);
  if (is_plain(piece.format)) {
    if (format.input == DType::bf16 ? all_plain : piece.format == QuantFormat::bf16) plan.storage = Storage::bf16;
    if (format.input != DType::bf16 && piece.format == QuantFormat::f16) plan.storage = Storage::rows_f16;
  } else if (format.integer_blocks && integer_blocks(piece.format)) {
    plan.rounding = Rounding::int8;
    plan.input_group = kIntegerBlock;
  }
  return plan;
}

/// A row in codes, as CodeRow has it.
struct EncodedRow {
  std::vector<std::int8_t> codes;
  std::vector<float> scales;
  std::vector<std::uint8_t> zeros;
  float row_scale = 1.0f;

  EncodedRow(std::int64_t cols, std::int64_t groups)
      : codes(static_cast<std::size_t>(cols)),
        scales(static_cast<std::size_t>(groups)),
        zeros(static_cast<std::size_t>(groups)) {}
  [[nodiscard]] CodeRow view() { return {codes.data(), scales.data(), zeros.data(), &row_scale}; }
};

/// Piece and row in it of the source's row `row`.
std::pair<const MatrixPiece*, std::int64_t> piece_of(const MatrixSource& source, std::int64_t row) {
  for (const MatrixPiece& piece : source.pieces) {
    if (row < piece.rows) return {&piece, piece.stored_row(row)};
    row -= piece.rows;
  }
  MILLRACE_CHECK(false, "row beyond the source's {} rows", source.rows());
  return {};
}

Status check_codes(const EncodedRow& encoded, CodeKind kind, std::int64_t row) {
  if (!std::ranges::all_of(encoded.scales, [](float scale) { return std::isfinite(scale); })) {
    return fail("a scale of output {} is not finite: the weights are damaged", row);
  }
  if (kind != CodeKind::e4m3) return Ok{};
  for (std::size_t k = 0; k < encoded.codes.size(); ++k) {
    if ((encoded.codes[k] & 0x7f) == 0x7f) {
      return fail("weight {} of output {} is not a number: the weights are damaged", k, row);
    }
  }
  return Ok{};
}

/// Codes of a row, rounded or as they come.
Result<EncodedRow> encode_row(const MatrixSource& source, const LinearFormat& format, const SegmentPlan& plan,
                              std::int64_t row) {
  const std::int64_t cols = source.cols();
  EncodedRow encoded(cols, plan.groups(cols));
  if (!format.codes) {
    const auto [piece, stored_row] = piece_of(source, row);
    piece->coded->read_row(stored_row, encoded.view());
    MILLRACE_CHECK_OK(check_codes(encoded, piece->coded->kind, stored_row));
    return encoded;
  }
  std::vector<float> values(static_cast<std::size_t>(cols));
  read_row(source, row, values.data());
  if (!std::ranges::all_of(values, [](float value) { return std::isfinite(value); })) {
    return fail("a weight of output {} is not finite: it cannot be rounded to {}", row,
                code_format_name(*format.codes));
  }
  quantize_row(*format.codes, values.data(), cols, encoded.view());
  return encoded;
}

/// Row `row` of a segment's piece of memory becomes these codes.
void place_codes(const SegmentPlan& plan, std::int64_t cols, std::int64_t row, const EncodedRow& encoded,
                 const SegmentParts& parts, std::byte* target) {
  for (std::int64_t eight = 0; eight * 8 < cols; ++eight) {
    std::byte* at = target + eight_offset(plan.storage, cols, row, eight);
    const std::int64_t count = std::min<std::int64_t>(8, cols - eight * 8);
    const std::int8_t* codes = encoded.codes.data() + eight * 8;
    if (eight_bytes(plan.storage) == 8) {
      std::memcpy(at, codes, static_cast<std::size_t>(count));
      continue;
    }
    std::uint32_t word = 0;
    for (std::int64_t i = 0; i < 8; ++i) {
      // Beyond the last input the zero, which a product does not see anyway, since the inputs are zeros there.
      const std::uint32_t code = i < count ? static_cast<std::uint32_t>(codes[i]) & 15u : 0u;
      word |= code << code_bit(plan.storage, static_cast<std::int32_t>(i));
    }
    std::memcpy(at, &word, sizeof word);
  }
  const std::int64_t groups = plan.groups(cols);
  for (std::int64_t g = 0; g < groups; ++g) {
    const auto index = static_cast<std::size_t>(group_index(groups, row, g));
    const float scale = encoded.scales[static_cast<std::size_t>(g)];
    if (plan.half_scales) {
      const std::uint16_t half = float_to_f16(scale);
      std::memcpy(target + parts.scales + index * 2, &half, 2);
    } else {
      std::memcpy(target + parts.scales + index * 4, &scale, 4);
    }
    if (plan.zeros) target[parts.zeros + index] = std::byte{encoded.zeros[static_cast<std::size_t>(g)]};
  }
  if (plan.row_scales) {
    std::memcpy(target + parts.row_scales + static_cast<std::size_t>(row) * 4, &encoded.row_scale, 4);
  }
}

void place_floats(const SegmentPlan& plan, std::int64_t cols, std::int64_t row, const std::vector<float>& values,
                  std::byte* target) {
  for (std::int64_t eight = 0; eight * 8 < cols; ++eight) {
    std::byte* at = target + eight_offset(plan.storage, cols, row, eight);
    const std::int64_t count = std::min<std::int64_t>(8, cols - eight * 8);
    const float* from = values.data() + eight * 8;
    if (plan.storage == Storage::rows_f32) {
      std::memcpy(at, from, static_cast<std::size_t>(count) * sizeof(float));
      continue;
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const std::uint16_t bits = plan.storage == Storage::bf16 ? float_to_bf16(from[i]) : float_to_f16(from[i]);
      std::memcpy(at + i * 2, &bits, 2);
    }
  }
}

bool is_coded(Storage storage) {
  return storage != Storage::rows_f32 && storage != Storage::rows_f16 && storage != Storage::bf16;
}

}  // namespace

bool SegmentPlan::joins(const SegmentPlan& next) const {
  return storage == next.storage && rounding == next.rounding && input_group == next.input_group &&
         group == next.group && scales == next.scales && half_scales == next.half_scales && zeros == next.zeros &&
         row_scales == next.row_scales && zero_bias == next.zero_bias && !ordered && !next.ordered;
}

std::vector<SegmentPlan> plan_segments(const MatrixSource& source, const LinearFormat& format) {
  if (format.codes) {
    SegmentPlan plan = plan_codes(*format.codes, format);
    plan.rows = source.rows();
    return {plan};
  }
  const bool all_plain = std::ranges::all_of(source.pieces, [](const MatrixPiece& p) { return is_plain(p.format); });
  std::vector<SegmentPlan> plans;
  std::int64_t row = 0;
  for (const MatrixPiece& piece : source.pieces) {
    SegmentPlan plan = plan_piece(piece, format, all_plain);
    plan.first_row = row;
    plan.rows = piece.rows;
    row += piece.rows;
    if (!plans.empty() && plans.back().joins(plan)) {
      plans.back().rows += plan.rows;
    } else {
      plans.push_back(plan);
    }
  }
  return plans;
}

SegmentParts segment_parts(const SegmentPlan& plan, std::int64_t cols) {
  const auto numbers = static_cast<std::size_t>(round_up_to(plan.rows, kTileRows) * plan.groups(cols));
  SegmentParts parts;
  parts.scales = aligned(static_cast<std::size_t>(weight_bytes(plan.storage, plan.rows, cols)));
  parts.zeros = parts.scales + (plan.scales ? aligned(numbers * (plan.half_scales ? 2 : 4)) : 0);
  parts.row_scales = parts.zeros + (plan.zeros ? aligned(numbers) : 0);
  const auto rows = static_cast<std::size_t>(round_up_to(plan.rows, kTileRows));
  parts.order = parts.row_scales + (plan.row_scales ? aligned(rows * sizeof(float)) : 0);
  parts.bytes = parts.order + (plan.ordered ? aligned(static_cast<std::size_t>(cols) * sizeof(std::int32_t)) : 0);
  return parts;
}

std::size_t planned_bytes(const std::vector<SegmentPlan>& plans, std::int64_t cols) {
  std::size_t bytes = 0;
  for (const SegmentPlan& plan : plans) bytes += segment_parts(plan, cols).bytes;
  return bytes;
}

SegmentPlan TileEncoder::tile_plan(std::int64_t tile) const {
  SegmentPlan part = plan;
  part.first_row += tile * kTileRows;
  part.rows = kTileRows;
  part.ordered = false;  // an order belongs to the whole segment
  return part;
}

Status TileEncoder::encode(std::int64_t tile, std::byte* target) const {
  const SegmentPlan part = tile_plan(tile);
  const std::int64_t cols = source->cols(), rows = std::min(part.rows, plan.rows - tile * kTileRows);
  const SegmentParts parts = segment_parts(part, cols);
  std::memset(target, 0, parts.bytes);
  std::vector<float> values(is_coded(plan.storage) ? 0 : static_cast<std::size_t>(cols));
  for (std::int64_t row = 0; row < rows; ++row) {
    if (is_coded(plan.storage)) {
      MILLRACE_TRY(const EncodedRow encoded, encode_row(*source, format, plan, part.first_row + row));
      place_codes(part, cols, row, encoded, parts, target);
    } else {
      read_row(*source, part.first_row + row, values.data());
      place_floats(part, cols, row, values, target);
    }
  }
  return Ok{};
}

Arithmetic CudaMatrix::arithmetic() const {
  const Rounding rounding = segments_.front().plan.rounding;
  return rounding == Rounding::none   ? Arithmetic::f32
         : rounding == Rounding::int8 ? Arithmetic::int8
         : rounding == Rounding::e4m3 ? Arithmetic::fp8
                                      : Arithmetic::bf16;
}

namespace {

/// Where a part of tiles goes: of the part's `bytes` a tile, that at `from` in a tile's piece of memory.
struct PartCopy {
  std::size_t from = 0, to = 0, bytes = 0;
};

/// Encodes the tiles of a segment and copies them to `start`, some at a time: enough for all threads, and no second
/// copy of a large weight on the host.
Status write_segment(const TileEncoder& encoder, std::byte* start, Device& device, ThreadPool& pool) {
  const SegmentPlan& plan = encoder.plan;
  const std::int64_t cols = encoder.source->cols(), tiles = (plan.rows + kTileRows - 1) / kTileRows;
  const SegmentParts parts = segment_parts(plan, cols), tile_parts = segment_parts(encoder.tile_plan(0), cols);
  const auto numbers = static_cast<std::size_t>(kTileRows * plan.groups(cols));
  const PartCopy copies[] = {
      {0, 0, static_cast<std::size_t>(weight_bytes(plan.storage, kTileRows, cols))},
      {tile_parts.scales, parts.scales, plan.scales ? numbers * (plan.half_scales ? 2 : 4) : 0},
      {tile_parts.zeros, parts.zeros, plan.zeros ? numbers : 0},
      {tile_parts.row_scales, parts.row_scales, plan.row_scales ? kTileRows * sizeof(float) : 0}};
  const std::int64_t at_once = std::min(
      tiles,
      std::max<std::int64_t>(pool.threads(), (std::int64_t{8} << 20) / static_cast<std::int64_t>(tile_parts.bytes)));
  std::vector<std::byte> space(static_cast<std::size_t>(at_once) * tile_parts.bytes), joined;
  for (std::int64_t first = 0; first < tiles; first += at_once) {
    const std::int64_t count = std::min(at_once, tiles - first);
    std::mutex mutex;
    std::optional<Error> error;
    pool.run(count, [&](std::int64_t i, int) {
      Status status = encoder.encode(first + i, space.data() + static_cast<std::size_t>(i) * tile_parts.bytes);
      if (status.ok()) return;
      const std::lock_guard lock(mutex);
      error = std::move(status).error();
    });
    if (error) return *error;
    for (const PartCopy& copy : copies) {
      joined.clear();
      for (std::int64_t i = 0; i < count; ++i) {
        const std::byte* from = space.data() + static_cast<std::size_t>(i) * tile_parts.bytes + copy.from;
        joined.insert(joined.end(), from, from + copy.bytes);
      }
      // Plain layouts have no more rows than there are: the last tile may go over the end.
      const std::size_t to = copy.to + static_cast<std::size_t>(first) * copy.bytes;
      const std::size_t end = copy.to + static_cast<std::size_t>(weight_bytes(plan.storage, plan.rows, cols));
      if (copy.to == 0) joined.resize(std::min(joined.size(), end - to));
      device.write(start + to, joined);
    }
  }
  return Ok{};
}

WeightView view_of(const SegmentPlan& plan, std::int64_t cols, const std::byte* start) {
  const SegmentParts parts = segment_parts(plan, cols);
  WeightView view = {};
  view.storage = plan.storage;
  view.half_scales = plan.half_scales;
  view.group = plan.group;
  view.zero_bias = plan.zero_bias;
  view.rows = plan.rows;
  view.cols = cols;
  view.data = start;
  if (plan.scales) view.scales = start + parts.scales;
  if (plan.zeros) view.zeros = reinterpret_cast<const std::uint8_t*>(start + parts.zeros);
  if (plan.row_scales) view.row_scales = reinterpret_cast<const float*>(start + parts.row_scales);
  return view;
}

}  // namespace

Result<std::unique_ptr<CudaMatrix>> CudaMatrix::pack(const MatrixSource& source, const LinearFormat& format,
                                                     Device& device, ThreadPool& pool) {
  const std::vector<SegmentPlan> plans = plan_segments(source, format);
  static std::atomic<std::uint64_t> next_id{0};
  auto matrix = std::make_unique<CudaMatrix>();
  matrix->id_ = ++next_id;
  matrix->rows_ = source.rows();
  matrix->cols_ = source.cols();
  matrix->bytes_ = planned_bytes(plans, source.cols());
  MILLRACE_TRY(matrix->memory_, device.allocate(matrix->bytes_, "a weight"));
  auto* start = static_cast<std::byte*>(matrix->memory_.get());
  for (const SegmentPlan& plan : plans) {
    MILLRACE_CHECK_OK(write_segment({&source, format, plan}, start, device, pool));
    Segment segment{plan, view_of(plan, matrix->cols_, start)};
    const SegmentParts parts = segment_parts(plan, matrix->cols_);
    if (plan.ordered) {
      const std::vector<std::int32_t>& order = piece_of(source, plan.first_row).first->coded->input_order;
      segment.order = reinterpret_cast<const std::int32_t*>(start + parts.order);
      device.write(start + parts.order, std::as_bytes(std::span(order)));
    }
    matrix->segments_.push_back(segment);
    start += parts.bytes;
  }
  return matrix;
}

}  // namespace millrace::cuda
