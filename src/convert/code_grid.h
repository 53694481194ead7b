// Weights rounded to codes for a file that others read too: scales are of a type that the file's format has.
#pragma once

#include <cstdint>
#include <vector>

#include "core/thread_pool.h"
#include "quant/codes.h"

namespace millrace {

/// What scales are stored as; NVFP4 and MXFP4 have types of their own.
enum class ScaleType : std::uint8_t { f32, f16, bf16 };

/// A weight's codes and the scales that give them their values:
///
///   value = unit * scale * step of the code          (quant/codes.h; of E2M1 the step is the number itself)
struct CodedRows {
  CodeFormat format;
  std::int64_t rows = 0, cols = 0;
  float unit = 1.0f;                // of the tensor; of NVFP4 alone not 1
  std::vector<std::int8_t> codes;   // [rows][cols]
  std::vector<float> scales;        // [rows][groups]
  std::vector<std::uint8_t> zeros;  // [rows][groups]

  CodedRows(const CodeFormat& of, std::int64_t row_count, std::int64_t col_count, float of_tensor);
  [[nodiscard]] std::int64_t groups() const { return format.groups(cols); }
  [[nodiscard]] float value(std::int64_t row, std::int64_t col) const;
};

/// How a group's numbers become codes: scale, and zero point of int4.
struct GroupGrid {
  float scale = 0.0f;
  std::uint8_t zero = 0;

  /// The code nearest to `weight`.
  [[nodiscard]] std::int8_t code(CodeKind kind, float weight, float unit) const;
  [[nodiscard]] float value(CodeKind kind, std::int8_t code, float unit) const;
};

/// The unit of a tensor whose largest weight has this size: of NVFP4 such that its scale is the largest E4M3.
float tensor_unit(const CodeFormat& format, float largest);

/// A grid that reaches from the lowest to the highest of the weights.
GroupGrid grid_of(const CodeFormat& format, ScaleType type, float unit, const float* weights, std::int64_t count);

/// Each weight to the nearest code of its group's grid ("round to nearest"). weights [rows, cols] must be finite.
CodedRows round_to_nearest(const CodeFormat& format, ScaleType type, float unit, const float* weights,
                           std::int64_t rows, std::int64_t cols, ThreadPool& pool);

}  // namespace millrace
