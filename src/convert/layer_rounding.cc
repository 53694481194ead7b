#include "convert/layer_rounding.h"

#include <algorithm>
#include <cmath>

#include "convert/dot.h"

namespace millrace {

namespace {

constexpr double kDamping = 0.01;  // of GPTQ, as its authors have it

/// What the rounding of one row changes.
struct RowChanges {
  double squares = 0.0, changes = 0.0, largest = 0.0, output_squares = 0.0, output_changes = 0.0;
};

}  // namespace

Result<LayerRounding> LayerRounding::create(RoundingMethod method, const CodeFormat& format, ScaleType scales,
                                            float unit, const InputStatistics* inputs,
                                            const std::vector<float>* factors, ThreadPool& pool) {
  LayerRounding rounding;
  rounding.format_ = format;
  rounding.scales_ = scales;
  rounding.unit_ = unit;
  if (inputs == nullptr || inputs->rows == 0) return rounding;
  rounding.method_ = method;
  rounding.sample_ = inputs->sample;
  if (factors != nullptr) {
    for (std::size_t i = 0; i < rounding.sample_.size(); ++i) rounding.sample_[i] /= (*factors)[i % factors->size()];
  }
  if (method == RoundingMethod::awq) rounding.outputs_ = {rounding.sample_, inputs->cols, format.group, pool};
  if (method == RoundingMethod::gptq) {
    MILLRACE_TRY(rounding.factor_, gptq_factor(inputs->products, inputs->cols, kDamping, pool));
  }
  return rounding;
}

CodedRows LayerRounding::codes_of(const float* weights, std::int64_t rows, std::int64_t cols, ThreadPool& pool) const {
  switch (method_) {
    case RoundingMethod::gptq:
      return gptq(format_, scales_, unit_, weights, rows, cols, factor_, pool);
    case RoundingMethod::awq:
      return round_to_best_grids(format_, scales_, unit_, weights, rows, cols, outputs_, pool);
    case RoundingMethod::nearest:
    case RoundingMethod::smoothquant:
      break;
  }
  return round_to_nearest(format_, scales_, unit_, weights, rows, cols, pool);
}

CodedRows LayerRounding::round(const float* weights, std::int64_t rows, std::int64_t cols, ThreadPool& pool) {
  CodedRows coded = codes_of(weights, rows, cols, pool);
  add_changes(weights, coded, pool);
  return coded;
}

void LayerRounding::add_changes(const float* weights, const CodedRows& coded, ThreadPool& pool) {
  const std::int64_t cols = coded.cols;
  std::vector<RowChanges> of_rows(static_cast<std::size_t>(coded.rows));
  pool.run(coded.rows, [&](std::int64_t r, int) {
    RowChanges& row = of_rows[static_cast<std::size_t>(r)];
    const float* original = weights + r * cols;
    std::vector<float> changes(static_cast<std::size_t>(cols));
    for (std::int64_t k = 0; k < cols; ++k) {
      const float change = original[k] - coded.value(r, k);
      changes[static_cast<std::size_t>(k)] = change;
      row.squares += static_cast<double>(original[k]) * original[k];
      row.changes += static_cast<double>(change) * change;
      row.largest = std::max(row.largest, static_cast<double>(std::fabs(change)));
    }
    for (std::size_t s = 0; s < sample_.size(); s += static_cast<std::size_t>(cols)) {
      const double output = dot(sample_.data() + s, original, cols),
                   change = dot(sample_.data() + s, changes.data(), cols);
      row.output_squares += output * output;
      row.output_changes += change * change;
    }
  });
  for (const RowChanges& row : of_rows) {  // in order, so that the number of threads does not show
    squares_ += row.squares;
    changes_ += row.changes;
    largest_ = std::max(largest_, row.largest);
    output_squares_ += row.output_squares;
    output_changes_ += row.output_changes;
  }
}

double LayerRounding::error() const {
  return squares_ > 0.0 ? std::sqrt(changes_ / squares_) : 0.0;
}

std::optional<double> LayerRounding::output_error() const {
  if (!(output_squares_ > 0.0)) return std::nullopt;
  return std::sqrt(output_changes_ / output_squares_);
}

}  // namespace millrace
