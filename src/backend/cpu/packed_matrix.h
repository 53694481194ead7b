// A weight as the CPU kernels read it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernel_table.h"
#include "core/result.h"
#include "core/thread_pool.h"

namespace millrace {

/// Outputs in segments of one format each, one below the other. Panels are numbered through all segments; a segment
/// starts a panel of its own.
class CpuMatrix final : public PackedMatrix {
 public:
  struct Segment {
    PackedSegment stored;                         // its format and shape; its data where there are no integers
    std::optional<PackedIntegers> integers = {};  // the same outputs as codes
    std::int64_t first_row = 0;
    std::int64_t first_panel = 0;
    bool scaled = false;  // the stored outputs have row scales

    [[nodiscard]] std::int64_t panels() const { return (stored.rows + kPanelRows - 1) / kPanelRows; }
  };

  /// Copies the source into the kernels' layout, the pool's threads each taking some rows: plain elements and integer
  /// codes into panels, everything else row by row as stored. Neighbouring pieces of one format become one segment.
  /// With a format of input bf16, a source of plain pieces alone is rounded to bf16; with a format of codes all pieces
  /// are rounded to it and become one segment. Takes the packed size and no more. Errors: no memory; a weight that
  /// cannot be rounded.
  static Result<std::unique_ptr<CpuMatrix>> pack(const MatrixSource& source, LinearFormat format, ThreadPool& pool);
  /// bytes() of what pack() would return; needs no data.
  static std::size_t packed_bytes(const MatrixSource& source, LinearFormat format);

  [[nodiscard]] std::int64_t rows() const override { return rows_; }
  [[nodiscard]] std::int64_t cols() const override { return cols_; }
  [[nodiscard]] std::size_t bytes() const override { return bytes_; }

  [[nodiscard]] Arithmetic arithmetic() const override {
    if (input_group_) return Arithmetic::int8;
    return round_inputs() ? Arithmetic::bf16 : Arithmetic::f32;
  }
  [[nodiscard]] bool round_inputs() const { return input_ == DType::bf16 && !e4m3(); }
  /// Weights and inputs are E4M3 with scales.
  [[nodiscard]] bool e4m3() const { return codes_ && codes_->kind == CodeKind::e4m3; }
  /// Where some segments have integers: the inputs that share a scale of their codes, 0 for all of a row.
  [[nodiscard]] std::optional<std::int64_t> input_group() const { return input_group_; }
  [[nodiscard]] std::int64_t panels() const;
  [[nodiscard]] const std::vector<Segment>& segments() const { return segments_; }

  /// Where the first half of the outputs (gate) and the second (up) lie in panels alike, so that panel p and panel
  /// twin_panel() + p hold output i of each at the same place, p * kPanelRows + lane: the first panel of the second
  /// half. Otherwise 0.
  [[nodiscard]] std::int64_t twin_panel() const;

  /// Output `row`'s weights as floats, target [cols].
  void decode_row(std::int64_t row, float* target) const;

 private:
  CpuMatrix() = default;

  Status pack_segment(const MatrixSource& source, const Segment& segment, std::byte* memory, ThreadPool& pool) const;
  /// The segments, without data yet, and what follows from them.
  void lay_out(const MatrixSource& source, LinearFormat format);

  std::int64_t rows_ = 0, cols_ = 0;
  std::size_t bytes_ = 0;
  DType input_ = DType::f32;
  std::optional<CodeFormat> codes_;
  std::optional<std::int64_t> input_group_;
  std::vector<Segment> segments_;
  std::shared_ptr<void> memory_;
};

}  // namespace millrace
