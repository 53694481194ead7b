// Panels of dense weights, gathered from neurons that lie one by one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "backend/cpu/packed_matrix.h"

namespace millrace {

/// What dense kernels take.
struct GatheredPanels {
  PackedSegment weight;
  std::optional<PackedIntegers> codes;
};

/// Bytes of a panel of a matrix that is laid out as `shape` says, which is plain elements or int8 and has no tiles.
std::int64_t gathered_panel_bytes(const CpuMatrix::Segment& shape);
/// Bytes behind the panels that are written too.
inline constexpr std::int64_t kGatheredPadding = 1024;

/// Outputs that are rows, padded to whole kNeuronBlocks: the first rows.size() of a matrix of this shape. `scales`: of
/// codes, for each output of whole panels. `target`: room for the panels and kGatheredPadding, aligned to 64 bytes.
/// `next`: rows that are gathered after these, a panel of which is asked for meanwhile.
GatheredPanels gather_rows(const CpuMatrix::Segment& shape, std::span<const std::byte* const> rows, const float* scales,
                           std::byte* target, std::span<const std::byte* const> next = {});

/// Outputs of which each input has its weights side by side: `outputs` of them, at columns[k] + offset those of input
/// k, to the end of whole panels.
GatheredPanels gather_columns(const CpuMatrix::Segment& shape, std::span<const std::byte* const> columns,
                              std::int64_t offset, std::int64_t outputs, const float* scales, std::byte* target);

}  // namespace millrace
