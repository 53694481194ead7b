#include "backend/cpu/packed_integers.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/float16.h"

namespace millrace {

namespace {

constexpr std::int64_t kQuad = 4;  // inputs that stand side by side

struct Sizes {
  std::size_t codes = 0, scales = 0, zeros = 0;
  [[nodiscard]] std::size_t all() const { return codes + scales + zeros; }
};

std::size_t aligned(std::int64_t bytes) {
  return static_cast<std::size_t>(round_up(bytes, 64));
}

Sizes sizes(const IntegerFormat& format, std::int64_t rows, std::int64_t cols) {
  const std::int64_t padded_rows = round_up(rows, kPanelRows), padded_cols = round_up(cols, kIntegerBlock);
  Sizes sizes{.codes = aligned(padded_rows * padded_cols * format.bits / 8)};
  if (format.bits == 8) {
    sizes.scales = aligned(padded_rows * static_cast<std::int64_t>(sizeof(float)));
  } else {
    const std::int64_t groups = padded_rows * format.groups(cols);
    sizes.scales = aligned(groups * static_cast<std::int64_t>(sizeof(std::uint16_t)));
    sizes.zeros = aligned(groups);
  }
  return sizes;
}

std::int64_t groups_of(const PackedIntegers& layout) {
  const std::int64_t blocks = layout.padded_cols / kIntegerBlock;
  return (blocks + layout.group_blocks - 1) / layout.group_blocks;
}

/// Byte and half of the byte (4 bits) of output `lane`'s code of input `k` within a panel.
struct Place {
  std::int64_t byte = 0;
  bool high = false;
};

Place place_of(std::int32_t bits, std::int64_t lane, std::int64_t k) {
  if (bits == 8) return {(k / kQuad * kPanelRows + lane) * kQuad + k % kQuad, false};
  return {(k / kQuad * (kPanelRows / 2) + lane % (kPanelRows / 2)) * kQuad + k % kQuad, lane >= kPanelRows / 2};
}

std::int64_t panel_bytes(const PackedIntegers& layout) {
  return layout.padded_cols * kPanelRows * layout.bits / 8;
}

}  // namespace

std::size_t packed_integer_bytes(const IntegerFormat& format, std::int64_t rows, std::int64_t cols) {
  return sizes(format, rows, cols).all();
}

PackedIntegers lay_out_integers(const IntegerFormat& format, std::int64_t rows, std::int64_t cols,
                                const std::byte* memory) {
  const Sizes parts = sizes(format, rows, cols);
  PackedIntegers layout{.bits = format.bits, .rows = rows, .cols = cols, .padded_cols = round_up(cols, kIntegerBlock)};
  layout.group_blocks = (format.group == 0 ? layout.padded_cols : format.group) / kIntegerBlock;
  layout.codes = memory;
  const std::byte* scales = memory + parts.codes;
  if (format.bits == 8) {
    layout.row_scales = reinterpret_cast<const float*>(scales);
  } else {
    layout.scales = reinterpret_cast<const std::uint16_t*>(scales);
    layout.zeros = reinterpret_cast<const std::uint8_t*>(scales + parts.scales);
  }
  return layout;
}

Status pack_integer_panel(const IntegerFormat& format, const MatrixSource& source, const PackedIntegers& layout,
                          std::int64_t panel) {
  const std::int64_t cols = layout.cols, groups = groups_of(layout);
  std::vector<float> values(static_cast<std::size_t>(cols)), scales(static_cast<std::size_t>(groups));
  std::vector<std::int8_t> codes(static_cast<std::size_t>(cols));
  std::vector<std::uint8_t> zeros(static_cast<std::size_t>(groups));
  // The memory is the caller's to fill and the layout's to read.
  auto* target = const_cast<std::byte*>(layout.codes) + panel * panel_bytes(layout);
  const std::int64_t end = std::min((panel + 1) * kPanelRows, layout.rows);
  for (std::int64_t row = panel * kPanelRows; row < end; ++row) {
    read_row(source, row, values.data());
    if (!std::ranges::all_of(values, [](float value) { return std::isfinite(value); })) {
      return fail("a weight is not finite (output {}): it cannot be rounded to {}", row, integer_format_name(format));
    }
    quantize_row(format, values.data(), cols, {codes.data(), scales.data(), zeros.data()});
    const std::int64_t lane = row % kPanelRows;
    for (std::int64_t k = 0; k < cols; ++k) {
      const Place place = place_of(layout.bits, lane, k);
      const auto code = static_cast<std::uint8_t>(codes[static_cast<std::size_t>(k)]);
      target[place.byte] |= static_cast<std::byte>(place.high ? code << 4 : code);
    }
    if (layout.bits == 8) {
      const_cast<float*>(layout.row_scales)[row] = scales.front();
      continue;
    }
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t index = (panel * groups + g) * kPanelRows + lane;
      const_cast<std::uint16_t*>(layout.scales)[index] = float_to_f16(scales[static_cast<std::size_t>(g)]);
      const_cast<std::uint8_t*>(layout.zeros)[index] = zeros[static_cast<std::size_t>(g)];
    }
  }
  return Ok{};
}

void decode_integer_row(const PackedIntegers& weight, std::int64_t row, float* target) {
  const std::int64_t panel = row / kPanelRows, lane = row % kPanelRows, groups = groups_of(weight);
  const std::byte* codes = weight.codes + panel * panel_bytes(weight);
  for (std::int64_t k = 0; k < weight.cols; ++k) {
    const Place place = place_of(weight.bits, lane, k);
    const auto byte = std::to_integer<std::uint8_t>(codes[place.byte]);
    if (weight.bits == 8) {
      target[k] = weight.row_scales[row] * static_cast<float>(static_cast<std::int8_t>(byte));
      continue;
    }
    const std::int64_t group = k / kIntegerBlock / weight.group_blocks;
    const std::int64_t index = (panel * groups + group) * kPanelRows + lane;
    const int code = (place.high ? byte >> 4 : byte & 15) - weight.zeros[index];
    target[k] = f16_to_float(weight.scales[index]) * static_cast<float>(code);
  }
}

}  // namespace millrace
