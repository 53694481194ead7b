// Which tensors of a checkpoint are weights of linear layers, under the names that recipes have for them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "model/checkpoint/checkpoint.h"
#include "model/tensor_names.h"

namespace millrace {

class LinearLayers {
 public:
  /// Errors: a model that cannot be loaded: no family, a missing or misshapen tensor.
  static Result<LinearLayers> of(const Checkpoint& checkpoint);

  /// The layer whose weight, or part of it, the tensor is; nothing where it is none that may be rounded. A head that is
  /// the embedding is none.
  [[nodiscard]] std::optional<std::string> of_tensor(const std::string& tensor) const;
  [[nodiscard]] const std::vector<std::string>& all() const { return layers_; }
  [[nodiscard]] const TensorNames& names() const { return names_; }

 private:
  TensorNames names_;
  std::vector<std::string> layers_;  // in alphabetical order
};

}  // namespace millrace
