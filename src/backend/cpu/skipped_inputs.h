// Rows of inputs with zeros for what rows of answers leave out (InputSkip).
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/parallel.h"

namespace millrace {

/// Used from one thread.
class SkippedInputs {
 public:
  explicit SkippedInputs(ThreadPool& pool) : pool_(&pool) {}

  void begin(const ForwardBatch& batch);

  [[nodiscard]] bool is_answer(std::int64_t row) const { return answers_[static_cast<std::size_t>(row)] != 0; }

  /// A copy of rows [0, rows) of x [rows][stride], `cols` numbers each, in which those of answers are zero where the
  /// skip says so; it stays until the next call. x itself where no row is of an answer. `outputs`: that read the
  /// inputs.
  const float* zeroed(const float* x, std::int64_t& stride, std::int64_t rows, std::int64_t cols, const InputSkip& skip,
                      std::int64_t outputs);

  [[nodiscard]] const SkipCounts& counts() const { return counts_; }

 private:
  ThreadPool* pool_;
  std::vector<std::uint8_t> answers_;    // of the batch
  std::vector<std::int64_t> positions_;  // of its rows
  std::vector<float> copy_;
  std::vector<std::int64_t> kept_;  // of each row
  SkipCounts counts_;
};

}  // namespace millrace
