#include "convert/code_grid.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/float16.h"
#include "quant/small_float.h"

namespace millrace {

namespace {

constexpr float kE2m1Largest = 6.0f;

/// The smallest scale of the type that is not below: no weight lies beyond the last code then.
float round_up(ScaleType type, float scale) {
  constexpr float kLargestHalf = 65504.0f;
  if (type == ScaleType::f32) return scale;
  if (type == ScaleType::bf16) {
    std::uint16_t bits = float_to_bf16(scale);
    if (bf16_to_float(bits) < scale) ++bits;
    return bf16_to_float(bits);
  }
  const float within = std::min(scale, kLargestHalf);
  std::uint16_t bits = float_to_f16(within);
  if (f16_to_float(bits) < within) ++bits;
  return f16_to_float(bits);
}

float e2m1_scale(const CodeFormat& format, float unit, float largest) {
  if (largest == 0.0f) return 0.0f;
  if (format.group == 16) return e4m3_to_float(float_to_e4m3(largest / kE2m1Largest / unit));
  // OCP: the exponent of the largest weight less that of the largest code.
  return std::ldexp(1.0f, std::clamp(std::ilogb(largest) - 2, -127, 127));
}

}  // namespace

CodedRows::CodedRows(const CodeFormat& of, std::int64_t row_count, std::int64_t col_count, float of_tensor)
    : format(of),
      rows(row_count),
      cols(col_count),
      unit(of_tensor),
      codes(static_cast<std::size_t>(row_count * col_count)),
      scales(static_cast<std::size_t>(row_count * of.groups(col_count))),
      zeros(scales.size()) {}

float CodedRows::value(std::int64_t row, std::int64_t col) const {
  const auto place = static_cast<std::size_t>(row * groups() + (format.group == 0 ? 0 : col / format.group));
  return GroupGrid{scales[place], zeros[place]}.value(format.kind, codes[static_cast<std::size_t>(row * cols + col)],
                                                      unit);
}

std::int8_t GroupGrid::code(CodeKind kind, float weight, float unit) const {
  const float factor = scale * unit;
  return nearest_code(kind, factor > 0.0f ? weight / factor : 0.0f, zero);
}

float GroupGrid::value(CodeKind kind, std::int8_t code, float unit) const {
  const float step = step_of_code(kind, code, zero) * (kind == CodeKind::e2m1 ? 0.5f : 1.0f);
  return step * (scale * unit);
}

float tensor_unit(const CodeFormat& format, float largest) {
  const bool nvfp4 = format.kind == CodeKind::e2m1 && format.group == 16;
  return nvfp4 && largest > 0.0f ? largest / (kE2m1Largest * kE4m3Largest) : 1.0f;
}

GroupGrid grid_of(const CodeFormat& format, ScaleType type, float unit, const float* weights, std::int64_t count) {
  float low = 0.0f, high = 0.0f;
  for (std::int64_t k = 0; k < count; ++k) {
    low = std::min(low, weights[k]);
    high = std::max(high, weights[k]);
  }
  const float largest = std::max(-low, high);
  GroupGrid grid;
  switch (format.kind) {
    case CodeKind::int8:
      grid.scale = round_up(type, largest / 127.0f);
      break;
    case CodeKind::e4m3:
      grid.scale = round_up(type, largest / kE4m3Largest);
      break;
    case CodeKind::e2m1:
      grid.scale = e2m1_scale(format, unit, largest);
      break;
    case CodeKind::int4:
      // Symmetric codes reach from -8 to 7: half a step is cut at either end.
      grid.scale = round_up(type, format.symmetric ? largest / 7.5f : (high - low) / 15.0f);
      grid.zero = kSymmetricZero;
      if (!format.symmetric) {
        const float zero = grid.scale > 0.0f ? std::nearbyint(-low / grid.scale) : 0.0f;
        grid.zero = static_cast<std::uint8_t>(std::clamp(zero, 0.0f, 15.0f));
      }
      break;
  }
  return grid;
}

CodedRows round_to_nearest(const CodeFormat& format, ScaleType type, float unit, const float* weights,
                           std::int64_t rows, std::int64_t cols, ThreadPool& pool) {
  CodedRows coded(format, rows, cols, unit);
  const std::int64_t step = format.group == 0 ? cols : format.group;
  pool.run(rows, [&](std::int64_t row, int) {
    for (std::int64_t g = 0; g < coded.groups(); ++g) {
      const std::int64_t first = row * cols + g * step, count = std::min(step, cols - g * step);
      const GroupGrid grid = grid_of(format, type, unit, weights + first, count);
      const auto place = static_cast<std::size_t>(row * coded.groups() + g);
      coded.scales[place] = grid.scale;
      coded.zeros[place] = grid.zero;
      for (std::int64_t k = first; k < first + count; ++k) {
        coded.codes[static_cast<std::size_t>(k)] = grid.code(format.kind, weights[k], unit);
      }
    }
  });
  return coded;
}

}  // namespace millrace
