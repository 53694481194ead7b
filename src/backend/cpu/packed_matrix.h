// A weight as the CPU kernels read it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/device_memory.h"
#include "backend/cpu/kernel_table.h"
#include "core/result.h"
#include "core/thread_pool.h"

namespace millrace {

/// What the kernels of a level have layouts for.
struct CpuLayouts {
  bool pairs = false;       // weights that are multiplied in bf16, or in E4M3, are paired (PackedSegment)
  bool code_tiles = false;  // codes may lie input by input
  int threads = 1;          // that share the tiles of what lies so
};

/// Outputs in segments of one format each, one below the other. Panels are numbered through all segments; a segment
/// starts a panel of its own.
class CpuMatrix final : public PackedMatrix {
 public:
  struct Segment {
    PackedSegment stored;                         // its format and shape; its data where there are no integers
    std::optional<PackedIntegers> integers = {};  // the same outputs as codes
    bool integer_inputs = false;                  // those are multiplied with codes of inputs, not with floats
    const CodedMatrix* coded = nullptr;           // where they come from; of meaning while they are packed
    std::int64_t first_row = 0;
    std::int64_t first_panel = 0;
    std::int64_t scale_groups = 0;  // of f8_e4m3: groups of inputs with a scale for each output; 0: no scales
    // Bytes from an output to the next where outputs lie one by one, so that some of them can be read alone: as
    // gather_rows() takes them, with the inputs of a panel. 0: they do not.
    std::int64_t row_bytes = 0;

    /// Outputs of a tile of weights that lie input by input; 0: they lie in panels.
    [[nodiscard]] std::int64_t tile() const { return integers ? integers->tile : stored.tile; }
    [[nodiscard]] bool row_scaled() const { return scale_groups > 0 && stored.group == 0; }
    /// Of outputs that lie one by one.
    [[nodiscard]] const std::byte* row(std::int64_t output) const {
      return (integers ? integers->codes : stored.data) + output * row_bytes;
    }

    [[nodiscard]] std::int64_t panels() const { return (stored.rows + kPanelRows - 1) / kPanelRows; }
  };

  /// Copies the source into the kernels' layout, the pool's threads each taking some rows: plain elements and integer
  /// codes into panels, everything else row by row as stored. Neighbouring pieces of one format become one segment.
  /// With a format of input bf16, a source of plain pieces alone is rounded to bf16; with a format of codes all pieces
  /// are rounded to it and become one segment. Pieces of codes that the kernels have no layout for become floats. Takes
  /// the packed size and no more, from the arena. With a skip() a single segment lies input by input, where that may
  /// be: of plain elements, and of codes whose inputs are codes too. With chosen_up a single segment becomes two, of
  /// which the second lies output by output, where that may be: of plain elements and of int8. Errors: no memory; a
  /// weight that cannot be rounded, or is not finite.
  static Result<std::unique_ptr<CpuMatrix>> pack(const MatrixSource& source, LinearFormat format, CpuLayouts layouts,
                                                 ThreadPool& pool, DeviceArena& arena);
  /// bytes() of what pack() would return; needs no data.
  static std::size_t packed_bytes(const MatrixSource& source, LinearFormat format, CpuLayouts layouts);
  /// What pack() would return, without weights: for those who hand the kernels panels that they make of others.
  static std::unique_ptr<CpuMatrix> laid_out(const MatrixSource& source, LinearFormat format, CpuLayouts layouts);

  [[nodiscard]] std::int64_t rows() const override { return rows_; }
  [[nodiscard]] std::int64_t cols() const override { return cols_; }
  [[nodiscard]] std::size_t bytes() const override { return bytes_; }

  [[nodiscard]] Arithmetic arithmetic() const override {
    if (input_group_) return Arithmetic::int8;
    if (e4m3() && paired()) return Arithmetic::fp8;
    return round_inputs() ? Arithmetic::bf16 : Arithmetic::f32;
  }
  [[nodiscard]] InputSkip skip() const override { return skip_; }
  [[nodiscard]] bool round_inputs() const { return input_ == DType::bf16 && !e4m3(); }
  /// Weights and inputs are E4M3 with scales.
  [[nodiscard]] bool e4m3() const { return codes_ && codes_->kind == CodeKind::e4m3 && !codes_->float_inputs; }
  /// Its products are those of pairs.
  [[nodiscard]] bool paired() const {
    return !segments_.empty() && std::ranges::all_of(segments_, [](const Segment& s) { return s.stored.paired; });
  }
  /// Whether its weights lie input by input.
  [[nodiscard]] bool tiled() const { return segments_.size() == 1 && segments_.front().tile() > 0; }
  /// The second half of the outputs, where these lie one by one; else null.
  [[nodiscard]] const Segment* chosen_up() const {
    return !segments_.empty() && segments_.back().row_bytes > 0 ? &segments_.back() : nullptr;
  }
  /// Whether panels are gathered for the dense kernels.
  [[nodiscard]] bool gathers() const { return tiled() || chosen_up() != nullptr; }
  /// The order in which inputs meet the weights; empty: their own.
  [[nodiscard]] const std::vector<std::int32_t>& input_order() const { return input_order_; }
  /// Where some segments take integers: the inputs that share a scale of their codes, 0 for all of a row.
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
  explicit CpuMatrix(CpuLayouts layouts) : layouts_(layouts) {}

  Status pack_segment(const MatrixSource& source, const Segment& segment, std::byte* memory, ThreadPool& pool) const;
  /// The segments, without data yet, and what follows from them.
  void lay_out(const MatrixSource& source, LinearFormat format);
  void lay_out_rounded(const CodeFormat& format);
  void add_piece(const MatrixPiece& piece, const LinearFormat& format, bool round);
  /// Puts the outputs input by input, if they can lie so.
  void tile(Segment& segment) const;
  /// Cuts the only segment into two, the second of which lies output by output, if it can lie so.
  void part_up();
  /// Its inputs become codes, if those of no other segment became different ones.
  void take_integer_inputs(Segment& segment);

  CpuLayouts layouts_;
  std::int64_t rows_ = 0, cols_ = 0;
  std::size_t bytes_ = 0;
  DType input_ = DType::f32;
  InputSkip skip_;
  std::optional<CodeFormat> codes_;
  std::optional<std::int64_t> input_group_;
  std::vector<std::int32_t> input_order_;
  std::vector<Segment> segments_;
  std::shared_ptr<void> memory_;
};

}  // namespace millrace
