#include "backend/cpu/products.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "backend/cpu/input_tiles.h"
#include "backend/cpu/neuron_panels.h"

namespace millrace {

namespace {

std::size_t bytes_of(const CpuMatrix::Segment& segment, std::int64_t panels) {
  if (segment.row_bytes > 0) {
    return static_cast<std::size_t>(panels * gathered_panel_bytes(segment) + kGatheredPadding);
  }
  return segment.integers ? gathered_bytes(*segment.integers, 0, panels) : gathered_bytes(segment.stored, 0, panels);
}

/// The segment of which panels are gathered.
const CpuMatrix::Segment& gathered_segment(const CpuMatrix& weight) {
  return weight.segments().back();
}

/// Outputs of panels [from, to) of a segment whose outputs lie one by one.
GatheredPanels gather_outputs(const CpuMatrix::Segment& segment, std::int64_t from, std::int64_t to,
                              std::byte* target) {
  const std::int64_t first = from * kPanelRows, end = std::min(to * kPanelRows, segment.stored.rows);
  std::vector<const std::byte*> rows;
  for (std::int64_t output = first; output < end; ++output) rows.push_back(segment.row(output));
  return gather_rows(segment, rows, segment.integers ? segment.integers->row_scales + first : nullptr, target);
}

}  // namespace

std::int64_t Products::gathered_panels(const CpuMatrix& weight) {
  constexpr std::size_t kBytes = std::size_t{1} << 20;  // that the second-level cache holds beside the rows
  constexpr std::int64_t kPiece = 256;                  // bytes of an input that are read together
  constexpr std::int64_t kRowPanels = 4;                // of outputs that lie one by one
  const CpuMatrix::Segment& segment = gathered_segment(weight);
  const std::int64_t of_input = segment.integers ? code_panel_bytes(*segment.integers)
                                                 : kPanelRows * (segment.stored.format == QuantFormat::f32 ? 4 : 2);
  std::int64_t panels = segment.row_bytes > 0 ? kRowPanels : kPiece / of_input;
  while (panels > 2 && bytes_of(segment, panels) > kBytes) panels /= 2;
  return panels;
}

std::int64_t Products::gathered_floats(const CpuMatrix& weight) {
  if (!weight.gathers()) return 0;
  const CpuMatrix::Segment& segment = gathered_segment(weight);
  const std::size_t bytes = bytes_of(segment, gathered_panels(weight)) + 64;
  return round_up(static_cast<std::int64_t>(bytes / sizeof(float)), 16);
}

void Products::multiply(const MatmulRun& run, std::int64_t first, std::int64_t end, std::int64_t row,
                        std::int64_t count, float* space) const {
  for (const CpuMatrix::Segment& segment : run.weight->segments()) {
    const std::int64_t from = std::max(first, segment.first_panel) - segment.first_panel;
    const std::int64_t to = std::min(end, segment.first_panel + segment.panels()) - segment.first_panel;
    if (from >= to) continue;
    const Part part{.out = run.out + (row - run.out_row) * run.out_stride + segment.first_row - run.out_column,
                    .bias = run.bias != nullptr ? run.bias + segment.first_row : nullptr,
                    .row = row,
                    .count = count};
    if (!run.kept.empty()) {
      multiply_kept(run, segment, from, to, part);
    } else if (segment.tile() > 0 || segment.row_bytes > 0) {
      multiply_gathered(run, segment, from, to, part, space);
    } else {
      multiply_rows(run, segment, segment.stored, segment.integers ? &*segment.integers : nullptr, from, to, part,
                    space);
    }
  }
}

void Products::multiply_kept(const MatmulRun& run, const CpuMatrix::Segment& segment, std::int64_t from,
                             std::int64_t to, const Part& part) const {
  // All rows are in one task, as of all weights that are tiled.
  std::int64_t row = 0;
  for (const KeptInputs& kept : run.kept) {
    float* const out = part.out + row * run.out_stride;
    if (segment.integers) {
      SkipIntegerTask task{.weight = *segment.integers,
                           .first_panel = from,
                           .end_panel = to,
                           .x = rows_from(run.integers, row),
                           .out = out,
                           .out_stride = run.out_stride,
                           .bias = part.bias};
      kept.fill(task);
      kernels_.products.skip_integers(task);
    } else {
      SkipTask task{.weight = segment.stored,
                    .first_panel = from,
                    .end_panel = to,
                    .out = out,
                    .out_stride = run.out_stride,
                    .bias = part.bias};
      kept.fill(task);
      (segment.stored.paired ? kernels_.products.skip_pairs : kernels_.skip_floats)(task);
    }
    row += kSkipRows;
  }
}

void Products::multiply_gathered(const MatmulRun& run, const CpuMatrix::Segment& segment, std::int64_t from,
                                 std::int64_t to, const Part& part, float* space) const {
  const std::int64_t gathered = gathered_panels(*run.weight);
  std::byte* const target = reinterpret_cast<std::byte*>(space - gathered_floats(*run.weight));
  for (std::int64_t panel = from; panel < to; panel += gathered) {
    const std::int64_t end = std::min(to, panel + gathered), outputs = panel * kPanelRows;
    std::optional<PackedIntegers> codes;
    PackedSegment weight = segment.stored;
    if (segment.row_bytes > 0) {
      const GatheredPanels panels = gather_outputs(segment, panel, end, target);
      weight = panels.weight;
      codes = panels.codes;
    } else if (segment.integers) {
      codes = gather_panels(*segment.integers, panel, end, target);
    } else {
      weight = gather_panels(segment.stored, panel, end, target);
    }
    const Part of_panels{.out = part.out + outputs,
                         .bias = part.bias != nullptr ? part.bias + outputs : nullptr,
                         .row = part.row,
                         .count = part.count};
    multiply_rows(run, segment, weight, codes ? &*codes : nullptr, 0, end - panel, of_panels, space);
  }
}

/// In tasks that the kernels take: whole tiles of rows.
void Products::multiply_rows(const MatmulRun& run, const CpuMatrix::Segment& segment, const PackedSegment& weight,
                             const PackedIntegers* codes, std::int64_t from, std::int64_t to, const Part& part,
                             float* space) const {
  for (std::int64_t row = 0; row < part.count; row += kMatmulRows) {
    const Part some{.out = part.out + row * run.out_stride,
                    .bias = part.bias,
                    .row = part.row + row,
                    .count = std::min(kMatmulRows, part.count - row)};
    multiply_segment(run, segment, weight, codes, from, to, some, space);
  }
}

void Products::multiply_segment(const MatmulRun& run, const CpuMatrix::Segment& segment, PackedSegment weight,
                                const PackedIntegers* codes, std::int64_t from, std::int64_t to, const Part& part,
                                float* space) const {
  if (segment.integer_inputs) {
    kernels_.products.multiply_integers({.weight = *codes,
                                         .first_panel = from,
                                         .end_panel = to,
                                         .x = rows_from(run.integers, part.row),
                                         .rows = part.count,
                                         .out = part.out,
                                         .out_stride = run.out_stride,
                                         .bias = part.bias});
  } else if (segment.stored.paired) {
    kernels_.products.multiply_pairs({.weight = weight,
                                      .first_panel = from,
                                      .end_panel = to,
                                      .x = run.pairs + part.row * run.pairs_stride,
                                      .x_stride = run.pairs_stride,
                                      .x_scales = run.x_scales != nullptr ? run.x_scales + part.row : nullptr,
                                      .rows = part.count,
                                      .resume = part.resume,
                                      .out = part.out,
                                      .out_stride = run.out_stride,
                                      .bias = part.bias});
  } else {
    if (codes != nullptr) {
      weight.format = QuantFormat::codes;
      weight.codes = codes;
    }
    kernels_.matmul({.weight = weight,
                     .first_panel = from,
                     .end_panel = to,
                     .x = run.x + part.row * run.x_stride,
                     .x_stride = run.x_stride,
                     .x_scales = run.x_scales != nullptr ? run.x_scales + part.row : nullptr,
                     .rows = part.count,
                     .round_inputs = run.weight->round_inputs(),
                     .resume = part.resume,
                     .out = part.out,
                     .out_stride = run.out_stride,
                     .bias = part.bias,
                     .scratch = space});
  }
}

}  // namespace millrace
