// Which tensors of a checkpoint are weights of linear layers, under the names that recipes have for them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "model/checkpoint/checkpoint.h"
#include "model/config.h"
#include "model/tensor_names.h"

namespace millrace {

class LinearLayers {
 public:
  /// Errors: a model that cannot be loaded: no family, a missing or misshapen tensor.
  static Result<LinearLayers> of(const Checkpoint& checkpoint);

  /// The layer whose weight, or part of it, the tensor is; nothing where it is none that may be rounded. A head that is
  /// the embedding is none.
  [[nodiscard]] std::optional<std::string> of_tensor(const std::string& tensor) const;
  /// Where the tensor holds one projection of all experts of a layer, [experts, rows, cols]: the name of the tensor
  /// that expert `expert` has where each has its own.
  [[nodiscard]] std::optional<std::string> of_expert(const std::string& tensor, std::int64_t expert) const;
  [[nodiscard]] const std::vector<std::string>& all() const { return layers_; }
  [[nodiscard]] const TensorNames& names() const { return names_; }
  [[nodiscard]] const ModelConfig& config() const { return config_; }

 private:
  ModelConfig config_;
  TensorNames names_;
  std::vector<std::string> layers_;  // in alphabetical order
};

}  // namespace millrace
