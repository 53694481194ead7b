#include "backend/cpu/neuron_panels.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/panel_shuffles.h"
#include "core/check.h"

namespace millrace {

namespace {

constexpr std::int64_t kLine = 64;

std::int64_t element_bytes(const CpuMatrix::Segment& shape) {
  if (shape.integers) return 1;
  return shape.stored.format == QuantFormat::f32 ? 4 : 2;
}

std::int64_t padded_cols(const CpuMatrix::Segment& shape) {
  if (shape.integers) return shape.integers->padded_cols;
  return shape.stored.paired ? round_up(shape.stored.cols, kPairBlock) : shape.stored.cols;
}

GatheredPanels panels_of(const CpuMatrix::Segment& shape, std::int64_t outputs, const float* scales,
                         const std::byte* data) {
  GatheredPanels panels{.weight = shape.stored, .codes = shape.integers};
  panels.weight.rows = outputs;
  panels.weight.data = data;
  if (panels.codes) {
    MILLRACE_CHECK(panels.codes->kind == CodeKind::int8 && panels.codes->scales == nullptr, "codes with groups");
    panels.codes->rows = outputs;
    panels.codes->codes = data;
    panels.codes->row_scales = scales;
  }
  return panels;
}

/// A line of each of 16 rows, whose words of 32 bits become lines: the elements that stand side by side for an output.
void transpose_line(const std::byte* const* rows, std::int64_t offset, std::byte* target) {
  for (std::int64_t r = 0; r < kPanelRows; r += 4) {
    for (std::int64_t word = 0; word < kLine / 4; word += 4) {
      const std::int64_t at = offset + word * 4;
      transpose_words({rows[r] + at, rows[r + 1] + at, rows[r + 2] + at, rows[r + 3] + at},
                      target + word * kLine + r * 4, kLine);
    }
  }
}

}  // namespace

std::int64_t gathered_panel_bytes(const CpuMatrix::Segment& shape) {
  return padded_cols(shape) * kPanelRows * element_bytes(shape);
}

GatheredPanels gather_rows(const CpuMatrix::Segment& shape, std::span<const std::byte* const> rows, const float* scales,
                           std::byte* target, std::span<const std::byte* const> next) {
  constexpr std::int64_t kAhead = 256;  // bytes
  const std::int64_t count = std::ssize(rows), bytes = padded_cols(shape) * element_bytes(shape);
  const std::int64_t panel_bytes = gathered_panel_bytes(shape);
  const bool apart = !shape.integers && !shape.stored.paired && element_bytes(shape) == 2;
  GatheredPanels panels = panels_of(shape, count, scales, target);
  for (std::int64_t first = 0; first < count; first += kPanelRows, target += panel_bytes) {
    const std::byte* of_panel[kPanelRows];  // what is not there repeats the last
    for (std::int64_t r = 0; r < kPanelRows; ++r) {
      of_panel[r] = rows[static_cast<std::size_t>(std::min(first + r, count - 1))];
    }
    const std::int64_t left = count - first - kPanelRows;
    const auto ahead = left > 0 ? rows.last(static_cast<std::size_t>(left)) : next;
    const std::int64_t asked = std::min(kPanelRows, std::ssize(ahead));
    // Rows lie whole pages apart, so that more than a few lines of each at a time would not stay in the cache.
    for (std::int64_t at = 0; at < bytes; at += kLine) {
      // Nobody has asked for the first panel, but where it came after others.
      for (std::int64_t r = 0; first == 0 && next.empty() && r < kPanelRows; ++r) {
        __builtin_prefetch(of_panel[r] + at + kAhead);
      }
      for (std::int64_t r = 0; r < asked; ++r) __builtin_prefetch(ahead[static_cast<std::size_t>(r)] + at, 0, 2);
      std::byte* const lines = target + at * kPanelRows;
      transpose_line(of_panel, at, lines);
      for (std::int64_t word = 0; apart && word < kLine / 4; ++word) {
        split_pairs(lines + word * kLine, lines + word * kLine);
      }
    }
  }
  return panels;
}

GatheredPanels gather_columns(const CpuMatrix::Segment& shape, std::span<const std::byte* const> columns,
                              std::int64_t offset, std::int64_t outputs, const float* scales, std::byte* target) {
  constexpr std::int64_t kAhead = 24;  // inputs
  alignas(64) static constexpr std::byte kZeros[1024] = {};
  const std::int64_t inputs = std::ssize(columns), padded = padded_cols(shape);
  const std::int64_t of_input = kPanelRows * element_bytes(shape), panel_bytes = gathered_panel_bytes(shape);
  const std::int64_t count = (outputs + kPanelRows - 1) / kPanelRows;
  MILLRACE_CHECK(count * of_input <= std::ssize(kZeros), "{} panels at once", count);
  const auto column = [&](std::int64_t k) {
    return k < inputs ? columns[static_cast<std::size_t>(k)] + offset : kZeros;
  };
  const std::int64_t step = shape.integers ? kQuad : shape.stored.paired ? 2 : 1;
  for (std::int64_t k = 0; k < padded; k += step) {
    for (std::int64_t ahead = k + kAhead; ahead < k + kAhead + step; ++ahead) {
      for (std::int64_t line = 0; line < count * of_input; line += kLine)
        __builtin_prefetch(column(ahead) + line, 0, 2);
    }
    std::byte* next = target + k * of_input;
    for (std::int64_t p = 0; p < count; ++p, next += panel_bytes) {
      const std::byte* const first = column(k) + p * of_input;
      if (shape.integers) {
        for (std::int64_t b = 0; b < kPanelRows; b += 8) {
          const std::int64_t at = p * of_input + b;
          quad_up({first + b, column(k + 1) + at, column(k + 2) + at, column(k + 3) + at}, next + b * kQuad);
        }
      } else if (shape.stored.paired) {
        pair_up(first, column(k + 1) + p * of_input, next);
      } else if (of_input == 32) {  // a constant size, for the compiler
        std::memcpy(next, first, 32);
      } else {
        std::memcpy(next, first, 64);
      }
    }
  }
  return panels_of(shape, outputs, scales, target);
}

}  // namespace millrace
