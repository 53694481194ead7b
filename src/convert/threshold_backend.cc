#include "convert/threshold_backend.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "backend/answer_rows.h"
#include "core/check.h"

namespace millrace {

Result<std::unique_ptr<PackedMatrix>> ThresholdBackend::pack(const MatrixSource& source, LinearFormat format) {
  MILLRACE_TRY(std::unique_ptr<PackedMatrix> matrix, inner().pack(source, format));
  if (!source.layers.empty() && skipping_.covers(source.layers.front())) {
    of_weight_[matrix.get()] = groups_.size();
    groups_.push_back({source.layers, matrix->bytes(), matrix->cols(), matrix->rows()});
    thresholds_.emplace_back();
    counts_.emplace_back();
    magnitudes_.emplace_back();
  }
  return matrix;
}

void ThresholdBackend::begin(const ForwardBatch& batch) {
  mark_answer_rows(batch, answers_);
  inner().begin(batch);
}

void ThresholdBackend::set(const std::vector<std::optional<float>>& thresholds) {
  MILLRACE_CHECK(thresholds.size() == groups_.size(), "{} thresholds of {} groups", thresholds.size(), groups_.size());
  thresholds_ = thresholds;
  counts_.assign(groups_.size(), {});
}

std::optional<std::size_t> ThresholdBackend::group_of(const PackedMatrix* weight) const {
  const auto found = of_weight_.find(weight);
  return found == of_weight_.end() ? std::nullopt : std::optional(found->second);
}

bool ThresholdBackend::touches(std::optional<std::size_t> group) const {
  return group && (watching_ || thresholds_[*group]);
}

void ThresholdBackend::zero(std::size_t group, const float* deciding, float* x, std::int64_t rows, std::int64_t cols) {
  MILLRACE_CHECK(rows == static_cast<std::int64_t>(answers_.size()), "{} rows, {} of the batch", rows, answers_.size());
  Counts& counts = counts_[group];
  const std::optional<float> threshold = thresholds_[group];
  for (std::int64_t r = 0; r < rows; ++r) {
    if (answers_[static_cast<std::size_t>(r)] == 0) continue;
    const float* const sizes = deciding + r * cols;
    float* const values = x + r * cols;
    if (watching_) {
      for (std::int64_t k = 0; k < cols; ++k) magnitudes_[group].add(sizes[k]);
    }
    if (!threshold) continue;
    std::int64_t kept = 0;
    for (std::int64_t k = 0; k < cols; ++k) {
      const bool small = std::fabs(sizes[k]) <= *threshold;  // not of a NaN
      values[k] = small ? 0.0f : values[k];
      kept += small ? 0 : 1;
    }
    counts.kept += kept;
    counts.all += cols;
  }
}

void ThresholdBackend::linear(const Linear& linear, const float* x, std::int64_t rows, float* out,
                              std::int64_t out_stride) {
  const std::optional<std::size_t> group = group_of(linear.weight);
  // Of cats all groups are down projections, which gated_ffn() multiplies with.
  if (!touches(group) || skipping_.method == SkipMethod::cats) {
    inner().linear(linear, x, rows, out, out_stride);
    return;
  }
  const std::int64_t cols = linear.weight->cols();
  copy_.assign(x, x + rows * cols);
  zero(*group, copy_.data(), copy_.data(), rows, cols);
  inner().linear(linear, copy_.data(), rows, out, out_stride);
}

void ThresholdBackend::gated_ffn(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out) {
  const std::optional<std::size_t> down = group_of(ffn.down.weight);
  // A clamped gate belongs to experts alone (gpt-oss).
  if ((!touches(down) && !touches(group_of(ffn.gate_up.weight))) || ffn.activation == Activation::swiglu_clamp) {
    inner().gated_ffn(ffn, x, rows, scratch, out);
    return;
  }
  const std::int64_t width = ffn.intermediate();
  linear(ffn.gate_up, x, rows, scratch, 2 * width);
  hidden_.resize(static_cast<std::size_t>(rows * width));
  for (std::int64_t r = 0; r < rows; ++r) std::copy_n(scratch + r * 2 * width, width, hidden_.data() + r * width);
  gate_ = hidden_;
  inner().activate_multiply(ffn.activation, hidden_.data(), scratch + width, 2 * width, rows, width);
  if (touches(down) && skipping_.method == SkipMethod::cats) {
    ones_.assign(gate_.size(), 1.0f);
    inner().activate_multiply(ffn.activation, gate_.data(), ones_.data(), width, rows, width);
    zero(*down, gate_.data(), hidden_.data(), rows, width);
  } else if (touches(down)) {
    zero(*down, hidden_.data(), hidden_.data(), rows, width);
  }
  inner().linear(ffn.down, hidden_.data(), rows, out, ffn.down.weight->rows());
}

}  // namespace millrace
