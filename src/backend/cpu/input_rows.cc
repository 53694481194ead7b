#include "backend/cpu/input_rows.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "backend/cpu/device_memory.h"
#include "backend/cpu/parallel.h"
#include "core/check.h"
#include "core/float16.h"

namespace millrace {

namespace {

/// `bytes` rounded up to lines of the cache, and one more where rows that far apart would lie in few sets of the
/// first-level cache.
std::int64_t spread(std::int64_t bytes) {
  constexpr std::int64_t kLine = 64, kFewSets = 1024;
  const std::int64_t stride = round_up(bytes, kLine);
  return stride % kFewSets == 0 ? stride + kLine : stride;
}

/// Several arrays in one piece of memory: first their places, then the memory.
class Places {
 public:
  template <typename Element>
  class Place {
   public:
    explicit Place(std::size_t offset) : offset_(offset) {}
    Element* in(std::byte* memory) const { return reinterpret_cast<Element*>(memory + offset_); }

   private:
    std::size_t offset_;
  };

  template <typename Element>
  Place<Element> add(std::int64_t count) {
    const Place<Element> place(bytes_);
    bytes_ += static_cast<std::size_t>(round_up(count * static_cast<std::int64_t>(sizeof(Element)), 64));
    return place;
  }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_ = 0;
};

}  // namespace

std::byte* InputRows::Memory::reserve(std::size_t bytes) {
  if (bytes > bytes_) {
    // Small rows a page each would take more entries of the processor's table of pages than it has.
    constexpr std::size_t kHugePage = std::size_t{2} << 20;
    bytes_ = bytes < kHugePage / 8 ? bytes : (bytes + kHugePage - 1) / kHugePage * kHugePage;
    auto memory = allocate_device_memory(bytes_, "inputs of products");
    MILLRACE_CHECK(memory.ok(), "{}", memory.error().message);
    memory_ = std::move(*memory);
  }
  return static_cast<std::byte*>(memory_.get());
}

MatmulRun InputRows::prepare(MatmulRun run) {
  if (const InputSkip skip = run.weight->skip(); skip.of_inputs()) {
    run.x = skipped_.zeroed(run.x, run.x_stride, run.rows, run.weight->cols(), skip, run.weight->rows());
  }
  if (!run.weight->input_order().empty()) reorder(run);
  if (run.weight->e4m3()) round_to_e4m3(run);
  if (run.weight->paired()) round_to_pairs(run);
  if (const std::optional<std::int64_t> group = run.weight->input_group()) quantize(run, *group);
  if (run.weight->tiled() && run.rows <= kMostSkipRows) list_kept(run);
  return run;
}

void InputRows::list_kept(MatmulRun& run) {
  const CpuMatrix::Segment& segment = run.weight->segments().front();
  if (!segment.integers && !segment.stored.paired && run.weight->round_inputs()) round_floats(run);
  std::optional<CodeKind> codes;
  if (segment.integers) codes = segment.integers->kind;
  double shares = 0.0;
  std::size_t groups = 0;
  for (std::int64_t first = 0; first < run.rows; first += kSkipRows) {
    KeptInputs& kept = kept_[groups++];
    if (!list_group(kept, run, first)) return;
    shares += kept.share(run.weight->cols());
    if (!skipping_pays(codes, shares)) return;
  }
  run.kept = std::span(kept_, groups);
}

bool InputRows::list_group(KeptInputs& kept, const MatmulRun& run, std::int64_t first) const {
  const CpuMatrix::Segment& segment = run.weight->segments().front();
  const std::int64_t cols = run.weight->cols(), rows = std::min(kSkipRows, run.rows - first);
  if (segment.integers) return kept.list_codes(*segment.integers, rows_from(run.integers, first), rows);
  if (segment.stored.paired) {
    kept.list_pairs(kernels_.products.pair_order, run.pairs + first * run.pairs_stride, run.pairs_stride, rows, cols);
  } else {
    kept.list_floats(run.x + first * run.x_stride, run.x_stride, rows, cols);
  }
  return true;
}

/// Kernels of kept inputs take values that are rounded already.
void InputRows::round_floats(MatmulRun& run) {
  const std::int64_t cols = run.weight->cols();
  Places places;
  const auto rounded_at = places.add<std::uint16_t>(round_up(cols, kPanelRows));
  const auto values_at = places.add<float>(run.rows * cols);
  std::byte* const memory = values_.reserve(places.bytes());
  std::uint16_t* const rounded = rounded_at.in(memory);
  float* const values = values_at.in(memory);
  for (std::int64_t row = 0; row < run.rows; ++row) {
    kernels_.round_to_bf16(
        {.x = run.x + row * run.x_stride, .cols = cols, .padded_cols = round_up(cols, kPanelRows), .values = rounded});
    for (std::int64_t k = 0; k < cols; ++k) values[row * cols + k] = bf16_to_float(rounded[k]);
  }
  run.x = values;
  run.x_stride = cols;
}

void InputRows::reorder(MatmulRun& run) {
  const std::vector<std::int32_t>& order = run.weight->input_order();
  const auto cols = static_cast<std::int64_t>(order.size());
  Places places;
  const auto ordered_at = places.add<float>(run.rows * cols);
  float* const ordered = ordered_at.in(ordered_.reserve(places.bytes()));
  for_each(pool_, run.rows, cols, kParallelElements, [&](std::int64_t row, int) {
    const float* x = run.x + row * run.x_stride;
    float* target = ordered + row * cols;
    for (const std::int32_t column : order) *target++ = x[column];
  });
  run.x = ordered;
  run.x_stride = cols;
}

void InputRows::quantize(MatmulRun& run, std::int64_t group) {
  const std::int64_t cols = run.weight->cols(), padded = round_up(cols, kIntegerBlock);
  const std::int64_t stride = spread(padded), blocks = stride / kInputBlock;
  const std::int64_t groups = group == 0 ? 1 : (padded + group - 1) / group;
  Places places;
  const auto codes_at = places.add<std::int8_t>((run.rows + kInputRowPadding) * stride);
  const auto sums_at = places.add<std::int32_t>(run.rows * blocks);
  const auto totals_at = places.add<std::int32_t>(run.rows * (blocks + 1));
  const auto scales_at = places.add<float>(run.rows * groups);
  const auto shifts_at = places.add<float>(run.rows * groups);
  const auto tile_scales_at = places.add<float>((run.rows + kInputRowPadding) * groups);
  const auto tile_shifts_at = places.add<float>((run.rows + kInputRowPadding) * groups);
  std::byte* const memory = codes_.reserve(places.bytes());
  std::int8_t* const codes = codes_at.in(memory);
  std::int32_t* const sums = sums_at.in(memory);
  std::int32_t* const totals = totals_at.in(memory);
  float* const scales = scales_at.in(memory);
  float* const shifts = shifts_at.in(memory);
  float* const tile_scales = tile_scales_at.in(memory);
  float* const tile_shifts = tile_shifts_at.in(memory);
  for_each(pool_, run.rows, 4 * padded, kParallelElements, [&](std::int64_t row, int) {
    const std::int64_t in_tiles = row / 16 * groups * 16 + row % 16;
    kernels_.quantize({.x = run.x + row * run.x_stride,
                       .cols = cols,
                       .padded_cols = padded,
                       .group = group,
                       .codes = codes + row * stride,
                       .sums = sums + row * blocks,
                       .totals = totals + row * (blocks + 1),
                       .scales = scales + row * groups,
                       .shifts = shifts + row * groups,
                       .tile_scales = tile_scales + in_tiles,
                       .tile_shifts = tile_shifts + in_tiles});
  });
  run.integers = {codes, sums, totals, scales, shifts, tile_scales, tile_shifts, stride, groups};
}

void InputRows::round_to_e4m3(MatmulRun& run) {
  const std::int64_t cols = run.weight->cols();
  Places places;
  const auto values_at = places.add<float>(run.rows * cols);
  const auto scales_at = places.add<float>(run.rows);
  std::byte* const memory = values_.reserve(places.bytes());
  float* const values = values_at.in(memory);
  float* const scales = scales_at.in(memory);
  for_each(pool_, run.rows, 4 * cols, kParallelElements, [&](std::int64_t row, int) {
    kernels_.round_to_e4m3(
        {.x = run.x + row * run.x_stride, .cols = cols, .values = values + row * cols, .scale = scales + row});
  });
  run.x = values;
  run.x_stride = cols;
  run.x_scales = scales;
}

void InputRows::round_to_pairs(MatmulRun& run) {
  const std::int64_t cols = run.weight->cols(), padded = round_up(cols, kPairBlock);
  const std::int64_t stride = spread(2 * padded) / 2;
  Places places;
  const auto pairs_at = places.add<std::uint16_t>((run.rows + kInputRowPadding) * stride);
  std::uint16_t* const pairs = pairs_at.in(pairs_.reserve(places.bytes()));
  for_each(pool_, run.rows, 2 * padded, kParallelElements, [&](std::int64_t row, int) {
    kernels_.round_to_bf16(
        {.x = run.x + row * run.x_stride, .cols = cols, .padded_cols = padded, .values = pairs + row * stride});
  });
  run.pairs = pairs;
  run.pairs_stride = stride;
}

}  // namespace millrace
