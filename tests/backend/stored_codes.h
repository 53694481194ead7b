// Weights in codes as checkpoints that others have quantised hold them, of random numbers.
#pragma once

#include <cstring>
#include <memory>
#include <numeric>

#include "backend/cpu_test_util.h"
#include "core/float16.h"
#include "quant/coded_matrix.h"

namespace millrace {

/// A coded weight and the memory of its parts.
struct Stored {
  std::vector<std::uint8_t> codes, zeros;
  std::vector<std::uint8_t> scales;
  std::shared_ptr<CodedMatrix> matrix = std::make_shared<CodedMatrix>();

  [[nodiscard]] MatrixPiece piece() const {
    return {.format = QuantFormat::codes, .rows = matrix->rows, .cols = matrix->cols, .coded = matrix};
  }
};

struct Kind {
  const char* name;
  CodeKind kind;
  std::int64_t group;
  bool zeros;
  QuantFormat scales;
  bool ordered = false;  // inputs in another order
};

inline constexpr Kind kKinds[] = {
    {"int4 g128 f16", CodeKind::int4, 128, true, QuantFormat::f16},
    {"int4 g32 bf16", CodeKind::int4, 32, false, QuantFormat::bf16},
    {"int4 g16 f32", CodeKind::int4, 16, true, QuantFormat::f32},
    {"int4 g24 f16, no layout", CodeKind::int4, 24, true, QuantFormat::f16},
    {"int4 of outputs", CodeKind::int4, 0, true, QuantFormat::f32},
    {"int4 ordered", CodeKind::int4, 32, true, QuantFormat::f16, true},
    {"int8 of outputs", CodeKind::int8, 0, false, QuantFormat::bf16},
    {"int8 g128 zeros", CodeKind::int8, 128, true, QuantFormat::f16},
    {"e2m1 g16", CodeKind::e2m1, 16, false, QuantFormat::f8_e4m3},
    {"e2m1 g32", CodeKind::e2m1, 32, false, QuantFormat::u8},
    {"e4m3 of outputs", CodeKind::e4m3, 0, false, QuantFormat::f32},
    {"e4m3 g64 f32", CodeKind::e4m3, 64, false, QuantFormat::f32},
    {"e4m3 g32 e8m0", CodeKind::e4m3, 32, false, QuantFormat::u8},
};

inline void append_scale(QuantFormat format, Random& random, std::vector<std::uint8_t>& target) {
  const float value = std::fabs(random.normal(0.02f)) + 1e-4f;
  const auto put = [&](const auto& element) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(&element);
    target.insert(target.end(), bytes, bytes + sizeof element);
  };
  if (format == QuantFormat::f32) put(value);
  if (format == QuantFormat::f16) put(float_to_f16(value));
  if (format == QuantFormat::bf16) put(float_to_bf16(value));
  if (format == QuantFormat::f8_e4m3) put(float_to_e4m3(value * 1000.0f));
  if (format == QuantFormat::u8) put(static_cast<std::uint8_t>(115 + random.below(12)));
}

inline Stored stored(const Kind& kind, std::int64_t rows, std::int64_t cols, Random& random) {
  Stored weight;
  CodedMatrix& matrix = *weight.matrix;
  matrix.kind = kind.kind;
  matrix.rows = rows;
  matrix.cols = cols;
  matrix.group = kind.group;
  weight.codes.resize(static_cast<std::size_t>(rows * cols));
  for (std::uint8_t& code : weight.codes) {
    code = std::to_integer<std::uint8_t>(random.byte());
    if (kind.kind == CodeKind::int4 || kind.kind == CodeKind::e2m1) code &= 15;
    if (kind.kind == CodeKind::e4m3 && (code & 0x7f) == 0x7f) code = 0;
  }
  matrix.codes = {
      .data = reinterpret_cast<const std::byte*>(weight.codes.data()), .row_stride = cols, .column_stride = 1};
  matrix.zero = 8;
  const std::int64_t groups = matrix.groups();
  if (kind.zeros) {
    weight.zeros.resize(static_cast<std::size_t>(rows * groups));
    for (std::uint8_t& zero : weight.zeros) {
      zero = std::to_integer<std::uint8_t>(random.byte()) & (kind.kind == CodeKind::int4 ? 15 : 255);
    }
    matrix.zeros = PackedNumbers{
        .data = reinterpret_cast<const std::byte*>(weight.zeros.data()), .row_stride = groups, .column_stride = 1};
  }
  for (std::int64_t i = 0; i < rows * groups; ++i) append_scale(kind.scales, random, weight.scales);
  const auto size = static_cast<std::int64_t>(weight.scales.size()) / (rows * groups);
  matrix.scales = {.data = reinterpret_cast<const std::byte*>(weight.scales.data()),
                   .format = kind.scales,
                   .row_stride = groups * size,
                   .column_stride = size};
  if (kind.kind == CodeKind::e2m1) matrix.unit = 0.37f;
  if (kind.ordered) {
    matrix.input_order.resize(static_cast<std::size_t>(cols));
    std::iota(matrix.input_order.begin(), matrix.input_order.end(), 0);
    for (std::size_t i = matrix.input_order.size() - 1; i > 0; --i) {
      std::swap(matrix.input_order[i],
                matrix.input_order[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(i) + 1))]);
    }
  }
  return weight;
}

}  // namespace millrace
