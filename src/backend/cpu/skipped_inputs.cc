#include "backend/cpu/skipped_inputs.h"

#include <algorithm>
#include <cmath>

#include "backend/answer_rows.h"
#include "core/check.h"

namespace millrace {

void SkippedInputs::begin(const ForwardBatch& batch) {
  mark_answer_rows(batch, answers_);
  positions_ = batch.positions;
}

const float* SkippedInputs::zeroed(const float* x, std::int64_t& stride, std::int64_t rows, std::int64_t cols,
                                   const InputSkip& skip, std::int64_t outputs) {
  MILLRACE_CHECK(rows == static_cast<std::int64_t>(answers_.size()), "{} rows of inputs, {} of the batch", rows,
                 answers_.size());
  if (std::ranges::find(answers_, 1) == answers_.end()) return x;
  copy_.resize(static_cast<std::size_t>(rows * cols));
  kept_.assign(static_cast<std::size_t>(rows), 0);
  const std::int64_t from = stride;
  const float threshold = skip.of_inputs().value_or(-1.0f);
  for_each(*pool_, rows, cols, kParallelElements, [&](std::int64_t row, int) {
    const float* source = x + row * from;
    float* target = copy_.data() + row * cols;
    if (!is_answer(row)) {
      std::copy_n(source, cols, target);
      return;
    }
    std::int64_t kept = 0;
    if (skip.drawn) {
      const std::int64_t position = positions_[static_cast<std::size_t>(row)];
      for (std::int64_t k = 0; k < cols; ++k) {
        target[k] = skip.drawn->keeps(position, k) ? source[k] : 0.0f;
        kept += target[k] != 0.0f ? 1 : 0;
      }
      kept_[static_cast<std::size_t>(row)] = kept;
      return;
    }
    for (std::int64_t k = 0; k < cols; ++k) {
      const bool zero = std::fabs(source[k]) <= threshold;  // not of a NaN
      target[k] = zero ? 0.0f : source[k];
      kept += zero ? 0 : 1;
    }
    kept_[static_cast<std::size_t>(row)] = kept;
  });
  for (std::int64_t row = 0; row < rows; ++row) {
    if (!is_answer(row)) continue;
    counts_.kept += static_cast<double>(kept_[static_cast<std::size_t>(row)] * outputs);
    counts_.all += static_cast<double>(cols * outputs);
  }
  stride = cols;
  return copy_.data();
}

}  // namespace millrace
