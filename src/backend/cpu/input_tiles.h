// Weights that lie input by input (PackedSegment::tile, PackedIntegers::tile): how wide tiles are, panels gathered from
// them for the dense kernels, and lists of the inputs that rows keep for the others.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend/cpu/kernel_table.h"

namespace millrace {

/// Outputs of a tile for `threads` threads, of which each is to have as much: up to a page of an input's weights. The
/// memory's prefetchers read on to the end of a page, so that what is left out of it costs as much as what is read.
/// `of_input`: bytes of a panel's weights of one input.
std::int64_t tile_outputs(std::int64_t rows, std::int64_t of_input, int threads);

/// Bytes that a panel's codes of one input take.
constexpr std::int64_t code_panel_bytes(const PackedIntegers& weight) {
  return weight.kind == CodeKind::int8 ? kPanelRows : kPanelRows / 2;
}

/// Where a panel's weights lie. `inputs`: of the tile, with padding; `of_input`: bytes of a panel's weights of one.
struct TiledPanel {
  std::int64_t offset = 0, stride = 0;  // of input 0; from one input to the next
};
TiledPanel tiled_panel(std::int64_t rows, std::int64_t tile, std::int64_t inputs, std::int64_t panel,
                       std::int64_t of_input);

/// Where group `group` of a panel has its 16 elements of a part with `count` groups for each panel.
std::int64_t group_place(const PackedIntegers& weight, std::int64_t panel, std::int64_t count, std::int64_t group);

/// Bytes of panels [first, end) as gather_panels() writes them.
std::size_t gathered_bytes(const PackedSegment& weight, std::int64_t first, std::int64_t end);
std::size_t gathered_bytes(const PackedIntegers& weight, std::int64_t first, std::int64_t end);
/// Copies panels [first, end) in the layout of weights that are not tiled, and returns a weight that has these alone,
/// as panels 0 to end - first. `target` is aligned to 64 bytes and keeps 64 bytes behind what gathered_bytes() says.
PackedSegment gather_panels(const PackedSegment& weight, std::int64_t first, std::int64_t end, std::byte* target);
PackedIntegers gather_panels(const PackedIntegers& weight, std::int64_t first, std::int64_t end, std::byte* target);

/// Row `row` and those behind it; where tiles of rows are read, it is the first of one.
inline IntegerInputs rows_from(const IntegerInputs& x, std::int64_t row) {
  const std::int64_t blocks = x.stride / kInputBlock;
  return {.codes = x.codes + row * x.stride,
          .sums = x.sums + row * blocks,
          .totals = x.totals + row * (blocks + 1),
          .scales = x.scales + row * x.groups,
          .shifts = x.shifts + row * x.groups,
          .tile_scales = x.tile_scales + row * x.groups,
          .tile_shifts = x.tile_shifts + row * x.groups,
          .stride = x.stride,
          .groups = x.groups};
}

/// The inputs that some of a few rows keep, in the form that a kernel wants. Used from one thread; what an object says
/// stays until it is told again.
class KeptInputs {
 public:
  /// Of rows of floats x [rows][stride]: all that are not zero.
  void list_floats(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t cols);
  /// Of rows of bf16.
  void list_pairs(PairOrder order, const std::uint16_t* x, std::int64_t stride, std::int64_t rows, std::int64_t cols);
  /// Of rows of codes. False where a scale is not finite: then zeros count too.
  bool list_codes(const PackedIntegers& weight, const IntegerInputs& x, std::int64_t rows);

  /// Of `cols` inputs, which part some row keeps.
  [[nodiscard]] double share(std::int64_t cols) const {
    return std::min(1.0, static_cast<double>(count_) / static_cast<double>(cols));  // codes are filled up to fours
  }

  /// Parts of a task that are the list's.
  void fill(SkipTask& task) const;
  void fill(SkipIntegerTask& task) const;

 private:
  void finish();

  std::vector<std::int32_t> kept_, begins_;
  std::vector<float> values_;
  std::vector<std::uint16_t> pairs_;
  std::vector<std::int8_t> codes_;
  std::int64_t count_ = 0, rows_ = 0, codes_stride_ = 0;
};

}  // namespace millrace
