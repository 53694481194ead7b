// A weight of the CUDA backend: segments of outputs, each stored in one of the layouts of matrix_layout.h. What they
// will be is planned from formats and shapes alone; then rows are encoded on the host, block by block, and copied.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/device.h"
#include "backend/cuda/kernels/launch.h"
#include "backend/matrix_source.h"
#include "core/result.h"
#include "core/thread_pool.h"

namespace millrace::cuda {

/// Outputs that are stored alike and want their inputs rounded alike.
struct SegmentPlan {
  Storage storage = Storage::rows_f32;
  Rounding rounding = Rounding::none;
  std::int32_t input_group = 0;  // of Rounding::int8
  std::int32_t group = 0;        // inputs that share a scale
  bool scales = false, half_scales = false, zeros = false, row_scales = false, ordered = false;
  std::int32_t zero_bias = 0;
  std::int64_t first_row = 0, rows = 0;

  [[nodiscard]] bool joins(const SegmentPlan& next) const;
  [[nodiscard]] std::int64_t groups(std::int64_t cols) const { return group == 0 ? 1 : (cols + group - 1) / group; }
};

/// Where the parts of a segment lie, from its start, each aligned for any access.
struct SegmentParts {
  std::size_t scales = 0, zeros = 0, row_scales = 0, order = 0, bytes = 0;
};

std::vector<SegmentPlan> plan_segments(const MatrixSource& source, const LinearFormat& format);
SegmentParts segment_parts(const SegmentPlan& plan, std::int64_t cols);
/// Of a matrix of these segments, on the device.
std::size_t planned_bytes(const std::vector<SegmentPlan>& plans, std::int64_t cols);

/// Encodes the tiles of a segment, 16 outputs each, one at a time.
struct TileEncoder {
  const MatrixSource* source = nullptr;
  LinearFormat format;
  SegmentPlan plan;

  /// A whole tile as a segment of its own, whose segment_parts() say what encode() writes.
  [[nodiscard]] SegmentPlan tile_plan(std::int64_t tile) const;
  /// Writes tile `tile`; outputs beyond the last are zeros. Error: a weight or a scale that is not finite.
  Status encode(std::int64_t tile, std::byte* target) const;
};

class CudaMatrix final : public PackedMatrix {
 public:
  struct Segment {
    SegmentPlan plan;
    WeightView view;
    const std::int32_t* order = nullptr;
  };

  static Result<std::unique_ptr<CudaMatrix>> pack(const MatrixSource& source, const LinearFormat& format,
                                                  Device& device, ThreadPool& pool);

  [[nodiscard]] std::int64_t rows() const override { return rows_; }
  [[nodiscard]] std::int64_t cols() const override { return cols_; }
  [[nodiscard]] std::size_t bytes() const override { return bytes_; }
  [[nodiscard]] Arithmetic arithmetic() const override;
  [[nodiscard]] const std::vector<Segment>& segments() const { return segments_; }
  /// No other matrix of the process has it, ever.
  [[nodiscard]] std::uint64_t id() const { return id_; }

 private:
  std::int64_t rows_ = 0, cols_ = 0;
  std::size_t bytes_ = 0;
  std::uint64_t id_ = 0;
  std::shared_ptr<void> memory_;
  std::vector<Segment> segments_;
};

}  // namespace millrace::cuda
