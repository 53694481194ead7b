// The rounding of one layer's weight, a block of rows after the other, and what it changes.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "convert/calibration.h"
#include "convert/code_grid.h"
#include "convert/gptq.h"
#include "convert/grid_search.h"
#include "convert/input_statistics.h"
#include "core/result.h"
#include "core/thread_pool.h"

namespace millrace {

class LayerRounding {
 public:
  /// `inputs`: what was seen of the layer's inputs; null, or nothing seen: weights are rounded to nearest. `factors`:
  /// that the columns of the weights were multiplied with; null: with nothing. `unit`: tensor_unit() of the weight.
  /// Error: gptq_factor()'s.
  static Result<LayerRounding> create(RoundingMethod method, const CodeFormat& format, ScaleType scales, float unit,
                                      const InputStatistics* inputs, const std::vector<float>* factors,
                                      ThreadPool& pool);

  /// weights [rows, cols], the next rows of the layer; finite.
  CodedRows round(const float* weights, std::int64_t rows, std::int64_t cols, ThreadPool& pool);

  /// Root of the summed squares of what changed so far, over that of the weights.
  [[nodiscard]] double error() const;
  [[nodiscard]] double largest_change() const { return largest_; }
  /// As error(), of the layer's outputs on the sample of its inputs; nothing without one.
  [[nodiscard]] std::optional<double> output_error() const;

 private:
  LayerRounding() = default;

  [[nodiscard]] CodedRows codes_of(const float* weights, std::int64_t rows, std::int64_t cols, ThreadPool& pool) const;
  void add_changes(const float* weights, const CodedRows& coded, ThreadPool& pool);

  RoundingMethod method_ = RoundingMethod::nearest;
  CodeFormat format_;
  ScaleType scales_ = ScaleType::f16;
  float unit_ = 1.0f;
  std::vector<float> sample_;  // [sample rows][cols], of the inputs as the weights meet them
  GptqFactor factor_;          // of GPTQ
  GroupChanges outputs_;       // of AWQ
  double squares_ = 0.0, changes_ = 0.0, largest_ = 0.0, output_squares_ = 0.0, output_changes_ = 0.0;
};

}  // namespace millrace
