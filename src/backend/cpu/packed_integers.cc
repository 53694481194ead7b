#include "backend/cpu/packed_integers.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "backend/cpu/input_tiles.h"
#include "core/check.h"
#include "core/float16.h"

namespace millrace {

namespace {

constexpr std::int64_t kQuad = 4;  // inputs that stand side by side

std::int32_t log2_of(std::int64_t power) {
  MILLRACE_CHECK(std::has_single_bit(static_cast<std::uint64_t>(power)), "{} is no power of two", power);
  return std::countr_zero(static_cast<std::uint64_t>(power));
}

std::int64_t panels_of(const PackedIntegers& layout) {
  return (layout.rows + kPanelRows - 1) / kPanelRows;
}

std::int64_t panel_bytes(const PackedIntegers& layout) {
  return layout.padded_cols * kPanelRows / (layout.kind == CodeKind::int8 ? 1 : 2);
}

/// Hands out memory, part after part; without memory it counts.
class Placer {
 public:
  explicit Placer(std::byte* memory) : memory_(memory) {}

  /// A part that the layout does not have stays null.
  template <typename Element>
  void place(const Element*& part, bool present, std::int64_t elements) {
    if (!present) return;
    if (memory_ != nullptr) part = reinterpret_cast<const Element*>(memory_ + bytes_);
    bytes_ += static_cast<std::size_t>(round_up(elements * static_cast<std::int64_t>(sizeof(Element)), 64));
  }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

 private:
  std::byte* memory_;
  std::size_t bytes_ = 0;
};

/// Stands for a part that the layout has, until it is placed.
template <typename Element>
const Element* present() {
  alignas(64) static const std::byte somewhere[64]{};
  return reinterpret_cast<const Element*>(somewhere);
}

std::size_t place_all(PackedIntegers& layout, std::byte* memory) {
  Placer placer(memory);
  const std::int64_t panels = panels_of(layout);
  const std::int64_t groups = panels * layout.groups * kPanelRows, supers = panels * layout.supers * kPanelRows;
  placer.place(layout.codes, true, panels * panel_bytes(layout));
  placer.place(layout.row_scales, layout.row_scales != nullptr, panels * kPanelRows);
  placer.place(layout.scales, layout.scales != nullptr, supers);
  placer.place(layout.float_scales, layout.float_scales != nullptr, groups);
  placer.place(layout.factors, layout.factors != nullptr, groups);
  placer.place(layout.zeros, layout.zeros != nullptr, groups);
  placer.place(layout.minimums, layout.minimums != nullptr, supers);
  placer.place(layout.minimum_factors, layout.minimum_factors != nullptr, groups);
  return placer.bytes();
}

/// The memory is the caller's to fill and the layout's to read.
template <typename Element>
Element* writable(const Element* part) {
  return const_cast<Element*>(part);
}

/// The byte of input 0 of an output in codes that lie input by input, and how far the next input's is from there.
TiledPanel tiled_code(const PackedIntegers& layout, std::int64_t row) {
  const std::int64_t of_input = code_panel_bytes(layout);
  TiledPanel place = tiled_panel(layout.rows, layout.tile, layout.padded_cols, row / kPanelRows, of_input);
  place.offset += row % of_input;
  return place;
}

bool upper_half(const PackedIntegers& layout, std::int64_t row) {
  return layout.kind != CodeKind::int8 && row % kPanelRows >= kPanelRows / 2;
}

void write_tiled_codes(const PackedIntegers& layout, std::int64_t row, const std::int8_t* codes) {
  const TiledPanel place = tiled_code(layout, row);
  std::byte* target = writable(layout.codes) + place.offset;
  const int shift = upper_half(layout, row) ? 4 : 0;
  for (std::int64_t k = 0; k < layout.cols; ++k, target += place.stride) {
    *target |= static_cast<std::byte>(static_cast<std::uint8_t>(codes[k])) << shift;
  }
}

void write_codes(const PackedIntegers& layout, std::int64_t row, const std::int8_t* codes) {
  if (layout.tile > 0) return write_tiled_codes(layout, row, codes);
  const std::int64_t lane = row % kPanelRows;
  std::byte* panel = writable(layout.codes) + row / kPanelRows * panel_bytes(layout);
  const bool bytes = layout.kind == CodeKind::int8;
  std::byte* target = panel + (bytes ? lane : lane % (kPanelRows / 2)) * kQuad;
  const std::int64_t step = (bytes ? kPanelRows : kPanelRows / 2) * kQuad;
  const int shift = !bytes && lane >= kPanelRows / 2 ? 4 : 0;
  const auto write = [&](const std::int8_t* quad) {
    std::uint32_t word = 0;
    std::memcpy(&word, quad, kQuad);
    if (!bytes) {  // the other half is of another output; what is shifted stays within its byte
      std::uint32_t other = 0;
      std::memcpy(&other, target, kQuad);
      word = other | (word << shift);
    }
    std::memcpy(target, &word, kQuad);
    target += step;
  };
  std::int64_t k = 0;
  for (; k + kQuad <= layout.cols; k += kQuad) write(codes + k);
  if (k < layout.cols) {
    std::int8_t last[kQuad] = {};
    std::copy(codes + k, codes + layout.cols, last);
    write(last);
  }
}

/// The first `given` of one output's elements of a part that has `count` for each, to their lane.
template <typename Element, typename Stored>
void write_lane(const PackedIntegers& layout, const Element* part, std::int64_t row, std::int64_t count,
                std::int64_t given, const Stored* values) {
  for (std::int64_t i = 0; i < given; ++i) {
    writable(part)[group_place(layout, row / kPanelRows, count, i) + row % kPanelRows] =
        static_cast<Element>(values[i]);
  }
}

template <typename Element, typename Stored>
void write_lane(const PackedIntegers& layout, const Element* part, std::int64_t row, std::int64_t count,
                const Stored* values) {
  write_lane(layout, part, row, count, count, values);
}

/// Scales as halves, times a power of two that is returned: 1 where all of them are halves already.
float to_halves(std::span<const float> scales, std::span<std::uint16_t> halves) {
  constexpr int kLargestPower = 14,
                kSmallestPower = -125;  // that rounds to a half; of what a float holds with all its digits
  float largest = 0.0f, power = 1.0f;
  bool exact = true;
  for (const float scale : scales) {
    largest = std::max(largest, std::fabs(scale));
    exact = exact && f16_to_float(float_to_f16(scale)) == scale;
  }
  if (!exact) power = std::ldexp(1.0f, std::max(std::ilogb(largest) - kLargestPower, kSmallestPower));
  std::ranges::transform(scales, halves.begin(), [&](float scale) { return float_to_f16(scale / power); });
  return power;
}

template <typename Element>
Element lane_element(const PackedIntegers& layout, const Element* part, std::int64_t row, std::int64_t count,
                     std::int64_t index) {
  return part[group_place(layout, row / kPanelRows, count, index) + row % kPanelRows];
}

void set_e2m1(PackedIntegers& layout) {
  layout.zero = kE2m1Zero;
  layout.row_scales = present<float>();
}

}  // namespace

PackedIntegers integer_layout(const CodeFormat& format, std::int64_t rows, std::int64_t cols) {
  PackedIntegers layout{.kind = format.kind, .rows = rows, .cols = cols, .padded_cols = round_up(cols, kIntegerBlock)};
  if (format.group == 0) {
    constexpr std::int64_t kMost = std::int64_t{1} << 17;  // products of -127 to 127 whose sum 32 bits hold
    MILLRACE_CHECK(cols <= kMost, "sums of {} products of 8-bit codes", cols);
    layout.group = layout.padded_cols;
    layout.row_scales = present<float>();
  } else {
    layout.group = format.group;
    layout.input_shift = log2_of(format.input_group());
    layout.scales = present<std::uint16_t>();
    if (format.kind == CodeKind::e2m1) {
      set_e2m1(layout);
    } else if (format.symmetric) {
      layout.zero = kSymmetricZero;
    } else {
      layout.zeros = present<std::uint8_t>();
    }
  }
  layout.groups = layout.supers = (layout.padded_cols + layout.group - 1) / layout.group;
  return layout;
}

std::optional<PackedIntegers> integer_layout(const CodedMatrix& matrix) {
  if (matrix.kind == CodeKind::e4m3 || matrix.group % kInputBlock != 0) return std::nullopt;
  PackedIntegers layout{.kind = matrix.kind,
                        .rows = matrix.rows,
                        .cols = matrix.cols,
                        .padded_cols = round_up(matrix.cols, kIntegerBlock)};
  layout.group = matrix.group == 0 ? layout.padded_cols : matrix.group;
  layout.groups = layout.supers = (layout.padded_cols + layout.group - 1) / layout.group;
  layout.row_scales = present<float>();
  if (matrix.group != 0 && matrix.scales.format == QuantFormat::f32) {
    layout.float_scales = present<float>();
  } else if (matrix.group != 0) {
    layout.scales = present<std::uint16_t>();
  }
  if (matrix.kind == CodeKind::e2m1) {
    layout.zero = kE2m1Zero;
  } else if (matrix.zeros) {
    layout.zeros = present<std::uint8_t>();
    layout.zero = matrix.kind == CodeKind::int8 ? -CodedMatrix::kByteZero : 0;
  } else if (matrix.kind == CodeKind::int4) {
    layout.zero = matrix.zero;
  }
  if (matrix.group != 0 && matrix.byte_input_group()) layout.input_shift = log2_of(*matrix.byte_input_group());
  return layout;
}

PackedIntegers integer_layout(const IntegerBlocks& blocks, std::int64_t rows, std::int64_t cols) {
  PackedIntegers layout{.kind = blocks.kind, .rows = rows, .cols = cols, .padded_cols = round_up(cols, kIntegerBlock)};
  layout.group = blocks.group;
  layout.groups = layout.padded_cols / blocks.group;
  layout.super_shift = log2_of(blocks.super / blocks.group);
  layout.supers = layout.padded_cols / blocks.super;
  layout.input_shift = log2_of(kIntegerBlock);
  layout.zero = blocks.zero;
  layout.scales = present<std::uint16_t>();
  if (blocks.kind == CodeKind::e2m1) set_e2m1(layout);
  if (blocks.factors()) layout.factors = present<std::int8_t>();
  if (blocks.minimums) layout.minimums = present<std::uint16_t>();
  if (blocks.minimums && blocks.factors()) layout.minimum_factors = present<std::int8_t>();
  return layout;
}

std::size_t packed_integer_bytes(const PackedIntegers& layout) {
  PackedIntegers copy = layout;
  return place_all(copy, nullptr);
}

void place_integers(PackedIntegers& layout, std::byte* memory) {
  place_all(layout, memory);
}

Status check_scales(std::span<const float> scales, float row_scale, std::int64_t row) {
  if (std::ranges::all_of(scales, [&](float scale) { return std::isfinite(scale * row_scale); })) return Ok{};
  return fail("a scale of output {} is not finite: the weights are damaged", row);
}

Status check_finite(std::span<const float> weights, const CodeFormat& format, std::int64_t row) {
  if (std::ranges::all_of(weights, [](float value) { return std::isfinite(value); })) return Ok{};
  return fail("a weight is not finite (output {}): it cannot be rounded to {}", row, code_format_name(format));
}

Status pack_integer_panel(const CodeFormat& format, const MatrixSource& source, std::int64_t first_row,
                          const PackedIntegers& layout, std::int64_t panel) {
  std::vector<float> values(static_cast<std::size_t>(layout.cols)), scales(static_cast<std::size_t>(layout.groups));
  std::vector<std::int8_t> codes(static_cast<std::size_t>(layout.cols));
  std::vector<std::uint8_t> zeros(static_cast<std::size_t>(layout.groups));
  std::vector<std::uint16_t> halves(static_cast<std::size_t>(layout.groups));
  const std::int64_t end = std::min((panel + 1) * kPanelRows, layout.rows);
  for (std::int64_t row = panel * kPanelRows; row < end; ++row) {
    read_row(source, first_row + row, values.data());
    MILLRACE_CHECK_OK(check_finite(values, format, first_row + row));
    float row_scale = 1.0f;
    quantize_row(format, values.data(), layout.cols, {codes.data(), scales.data(), zeros.data(), &row_scale});
    write_codes(layout, row, codes.data());
    if (layout.row_scales != nullptr) {
      write_lane(layout, layout.row_scales, row, 1, layout.scales == nullptr ? scales.data() : &row_scale);
    }
    if (layout.scales == nullptr) continue;
    std::ranges::transform(scales, halves.begin(), float_to_f16);
    write_lane(layout, layout.scales, row, layout.groups, halves.data());
    if (layout.zeros != nullptr) write_lane(layout, layout.zeros, row, layout.groups, zeros.data());
  }
  return Ok{};
}

void pack_block_row(QuantFormat format, const std::byte* blocks, const PackedIntegers& layout, std::int64_t row) {
  std::vector<std::int8_t> codes(static_cast<std::size_t>(layout.cols)),
      factors(static_cast<std::size_t>(layout.groups)), minimum_factors(factors.size());
  std::vector<std::uint16_t> scales(static_cast<std::size_t>(layout.supers)), minimums(scales.size());
  float row_scale = 1.0f;
  split_row(format, blocks, layout.cols,
            {codes.data(), scales.data(), minimums.data(), factors.data(), minimum_factors.data(), &row_scale});
  write_codes(layout, row, codes.data());
  write_lane(layout, layout.scales, row, layout.supers, scales.data());
  if (layout.row_scales != nullptr) write_lane(layout, layout.row_scales, row, 1, &row_scale);
  if (layout.factors != nullptr) write_lane(layout, layout.factors, row, layout.groups, factors.data());
  if (layout.minimums != nullptr) write_lane(layout, layout.minimums, row, layout.supers, minimums.data());
  if (layout.minimum_factors != nullptr) {
    write_lane(layout, layout.minimum_factors, row, layout.groups, minimum_factors.data());
  }
}

Status pack_coded_row(const CodedMatrix& matrix, std::int64_t stored_row, const PackedIntegers& layout,
                      std::int64_t row) {
  std::vector<std::int8_t> codes(static_cast<std::size_t>(layout.cols));
  std::vector<float> scales(static_cast<std::size_t>(matrix.groups()));
  std::vector<std::uint8_t> zeros(scales.size());
  float row_scale = 1.0f;
  matrix.read_row(stored_row, {codes.data(), scales.data(), zeros.data(), &row_scale});
  MILLRACE_CHECK_OK(check_scales(scales, row_scale, stored_row));
  write_codes(layout, row, codes.data());
  const auto groups = static_cast<std::int64_t>(scales.size());  // as many as the layout has, but for the padding
  if (layout.zeros != nullptr) write_lane(layout, layout.zeros, row, layout.groups, groups, zeros.data());
  if (layout.float_scales != nullptr) {
    write_lane(layout, layout.float_scales, row, layout.groups, groups, scales.data());
  } else if (layout.scales == nullptr) {
    row_scale *= scales.front();
  } else {
    std::vector<std::uint16_t> halves(scales.size());
    row_scale *= to_halves(scales, halves);
    write_lane(layout, layout.scales, row, layout.groups, groups, halves.data());
  }
  write_lane(layout, layout.row_scales, row, 1, 1, &row_scale);
  return Ok{};
}

void decode_integer_row(const PackedIntegers& weight, std::int64_t row, float* target) {
  const std::int64_t lane = row % kPanelRows;
  const std::byte* panel = weight.codes + row / kPanelRows * panel_bytes(weight);
  for (std::int64_t k = 0; k < weight.cols; ++k) {
    const std::int64_t group = k / weight.group, super = group >> weight.super_shift;
    std::int32_t code = 0;
    if (weight.tile > 0) {
      const TiledPanel place = tiled_code(weight, row);
      const std::byte byte = weight.codes[place.offset + k * place.stride];
      const int both = std::to_integer<std::uint8_t>(byte);
      code = weight.kind == CodeKind::int8 ? std::int32_t{std::to_integer<std::int8_t>(byte)}
             : upper_half(weight, row)     ? both >> 4
                                           : both & 15;
    } else if (weight.kind == CodeKind::int8) {
      code = std::int32_t{std::to_integer<std::int8_t>(panel[(k / kQuad * kPanelRows + lane) * kQuad + k % kQuad])};
    } else {
      const auto both = std::to_integer<std::uint8_t>(
          panel[(k / kQuad * (kPanelRows / 2) + lane % (kPanelRows / 2)) * kQuad + k % kQuad]);
      code = lane >= kPanelRows / 2 ? both >> 4 : both & 15;
    }
    if (weight.kind == CodeKind::e2m1) {
      code = std::int32_t{kE2m1Steps[code]};
    } else {
      code -= weight.zero;
      if (weight.zeros != nullptr) code -= lane_element(weight, weight.zeros, row, weight.groups, group);
    }
    target[k] = static_cast<float>(code);
    if (weight.scales == nullptr) {
      if (weight.float_scales != nullptr)
        target[k] *= lane_element(weight, weight.float_scales, row, weight.groups, group);
      target[k] *= weight.row_scales[row];
      continue;
    }
    float scale = f16_to_float(lane_element(weight, weight.scales, row, weight.supers, super));
    if (weight.factors != nullptr) scale *= lane_element(weight, weight.factors, row, weight.groups, group);
    target[k] *= scale;
    if (weight.row_scales != nullptr) target[k] *= weight.row_scales[row];
    if (weight.minimums == nullptr) continue;
    float minimum = f16_to_float(lane_element(weight, weight.minimums, row, weight.supers, super));
    if (weight.minimum_factors != nullptr)
      minimum *= lane_element(weight, weight.minimum_factors, row, weight.groups, group);
    target[k] += minimum;
  }
}

std::int64_t input_group(const PackedIntegers& weight) {
  return weight.scales == nullptr ? 0 : std::int64_t{1} << weight.input_shift;
}

}  // namespace millrace
