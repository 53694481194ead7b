#include "convert/tensor_reader.h"

#include "backend/matrix_source.h"
#include "model/weight_builder.h"

namespace millrace {

namespace {

std::int64_t rows_of(const StoredTensor& tensor) {
  return tensor.shape.size() < 2 ? 1 : tensor.shape.front();
}

}  // namespace

void TensorReader::scale_rows(const std::string& tensor, std::int64_t first_row, const std::vector<float>& factors) {
  std::vector<float>& all = rows_[tensor];
  all.assign(static_cast<std::size_t>(first_row), 1.0f);
  all.insert(all.end(), factors.begin(), factors.end());
}

bool TensorReader::is_shifted(const StoredTensor& tensor) const {
  return names_->norms_minus_one && checkpoint_->norms_include_one() && tensor.name.ends_with("norm.weight");
}

bool TensorReader::as_stored(const StoredTensor& tensor) const {
  return is_plain(tensor.format) && tensor.unpermute_heads == 0 && !is_shifted(tensor) &&
         !columns_.contains(tensor.name) && !rows_.contains(tensor.name);
}

const std::vector<float>* TensorReader::column_factors(const std::string& tensor) const {
  const auto found = columns_.find(tensor);
  return found == columns_.end() ? nullptr : &found->second;
}

void TensorReader::read(const StoredTensor& tensor, std::int64_t first, std::int64_t count, float* target) const {
  const std::int64_t rows = rows_of(tensor), cols = tensor.elements() / rows;
  const SourceTensor source{tensor, {}};
  if (tensor.shape.size() < 2 && tensor.unpermute_heads > 0) {  // a bias: its elements are what rows of the weight are
    const MatrixSource column{{WeightBuilder::piece(source, cols, 1, {})}};
    for (std::int64_t i = 0; i < cols; ++i) read_row(column, i, target + i);
  } else {
    const MatrixSource matrix{{WeightBuilder::piece(source, rows, cols, {})}};
    pool_->run(count, [&](std::int64_t row, int) { read_row(matrix, first + row, target + row * cols); });
  }
  if (is_shifted(tensor)) {
    for (std::int64_t i = 0; i < count * cols; ++i) target[i] -= 1.0f;
  }
  if (const std::vector<float>* factors = column_factors(tensor.name)) {
    // Of norms that are stored less one the whole is scaled.
    const bool less_one = names_->norms_minus_one && tensor.name.ends_with("norm.weight");
    for (std::int64_t i = 0; i < count * cols; ++i) {
      const float factor = (*factors)[static_cast<std::size_t>(i % cols)];
      target[i] = less_one ? (target[i] + 1.0f) * factor - 1.0f : target[i] * factor;
    }
  }
  if (const auto found = rows_.find(tensor.name); found != rows_.end()) {
    const bool vector = tensor.shape.size() < 2;
    for (std::int64_t i = 0; i < count * cols; ++i) {
      target[i] *= found->second[static_cast<std::size_t>(vector ? i : first + i / cols)];
    }
  }
}

std::vector<float> TensorReader::read(const StoredTensor& tensor) const {
  std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
  read(tensor, 0, rows_of(tensor), values.data());
  return values;
}

}  // namespace millrace
