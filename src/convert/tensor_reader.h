// A checkpoint's tensors as floats, in the form that Hugging Face's files have, whatever the source is; and scaled
// where that is wanted.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/thread_pool.h"
#include "model/checkpoint/checkpoint.h"
#include "model/tensor_names.h"

namespace millrace {

class TensorReader {
 public:
  /// All must outlive the reader.
  TensorReader(const Checkpoint& checkpoint, const TensorNames& names, ThreadPool& pool)
      : checkpoint_(&checkpoint), names_(&names), pool_(&pool) {}

  /// From now on a matrix's columns, or rows from `first_row` on, or a vector's elements are multiplied with `factors`.
  void scale_columns(const std::string& tensor, const std::vector<float>& factors) { columns_[tensor] = factors; }
  void scale_rows(const std::string& tensor, std::int64_t first_row, const std::vector<float>& factors);

  /// Rows [first, first + count) of a matrix [rows, cols], or all of a vector as one row, target [count, cols].
  void read(const StoredTensor& tensor, std::int64_t first, std::int64_t count, float* target) const;
  /// The whole of it.
  [[nodiscard]] std::vector<float> read(const StoredTensor& tensor) const;

  /// Whether the bytes of the source mean what read() gives.
  [[nodiscard]] bool as_stored(const StoredTensor& tensor) const;
  /// What a matrix's columns are multiplied with; null: nothing.
  [[nodiscard]] const std::vector<float>* column_factors(const std::string& tensor) const;
  /// Whether norms are stored less one, in what read() gives.
  [[nodiscard]] bool norms_minus_one() const { return names_->norms_minus_one; }

 private:
  [[nodiscard]] bool is_shifted(const StoredTensor& tensor) const;

  const Checkpoint* checkpoint_;
  const TensorNames* names_;
  ThreadPool* pool_;
  std::map<std::string, std::vector<float>> columns_;
  std::map<std::string, std::vector<float>> rows_;  // for all rows
};

}  // namespace millrace
