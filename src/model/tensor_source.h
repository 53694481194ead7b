// Where the loader gets tensors from: a checkpoint, or made-up values that depend on nothing but a tensor's name.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "model/checkpoint/checkpoint.h"

namespace millrace {

/// A tensor and, where it was made up, the memory that holds it.
struct SourceTensor {
  StoredTensor stored;
  std::vector<std::byte> owned;
};

class TensorSource {
 public:
  /// `checkpoint` must outlive the source.
  static TensorSource of_checkpoint(const Checkpoint& checkpoint);

  /// Random values: element i of a tensor is drawn from Philox with the counter i / 4 and the FNV-1a hash of the
  /// tensor's name as key, scaled by a power of two that keeps activations at about their size, and rounded to the
  /// config's dtype. tools/conformance/dummy_weights.py makes the same. Error: a dtype that is not f32, f16 or bf16.
  static Result<TensorSource> dummy(const nlohmann::json& config);

  /// Whether there is such a tensor. Made-up ones always are.
  [[nodiscard]] bool has(std::string_view name) const;

  /// Whether there are two such tensors that are not the same to the last bit. Reads them.
  [[nodiscard]] bool differ(std::string_view one, std::string_view other) const;

  /// What a tensor is, without reading it; the data may be absent. Errors: it is missing, or has another shape.
  [[nodiscard]] Result<SourceTensor> describe(const std::string& name, const std::vector<std::int64_t>& shape) const;
  /// The same, with its data.
  [[nodiscard]] Result<SourceTensor> read(const std::string& name, const std::vector<std::int64_t>& shape) const;
  /// The values have been used and will not be read again soon. `tensor` may be a part of one.
  void release(const StoredTensor& tensor) const;

  /// True where norm weights already contain the "+1" of the Gemma families.
  [[nodiscard]] bool norms_include_one() const;

 private:
  const Checkpoint* checkpoint_ = nullptr;  // null: dummy
  QuantFormat format_ = QuantFormat::f32;   // of made-up tensors
};

}  // namespace millrace
