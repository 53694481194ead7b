// Turns named tensors into packed weights, one at a time. The same calls serve two passes: the first only adds up what
// the weights will take and finds what is missing or misshapen, before any memory is taken; the second packs.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "core/result.h"
#include "model/tensor_source.h"
#include "model/weights.h"

namespace millrace {

/// Output i of a projection whose heads store rotary pairs as neighbours, reordered so that pairs are half of
/// `rotary_dim` apart. Empty for rotary_dim 0.
std::vector<std::int32_t> half_split_order(std::int32_t heads, std::int32_t head_dim, std::int32_t rotary_dim);

/// The format of a linear layer by its name, "model.layers.0.mlp.down_proj" or "lm_head"; the experts of a layer are
/// "model.layers.0.mlp.experts.gate_up_proj" and "...down_proj". Empty: all have the general one.
using LinearFormats = std::function<LinearFormat(const std::string& name)>;

class WeightBuilder {
 public:
  /// `format`: of the matrices that `formats` is not asked about: embeddings, routers. All must outlive the builder.
  WeightBuilder(const TensorSource& source, Backend& backend, LinearFormat format, LinearFormats formats = {})
      : source_(&source), backend_(&backend), format_(format), formats_(std::move(formats)) {}

  /// From now on weights are packed. `progress(done, total)`, in bytes, may be empty.
  void start_packing(std::uint64_t total, std::function<void(std::uint64_t, std::uint64_t)> progress);

  [[nodiscard]] const TensorSource& source() const { return *source_; }
  [[nodiscard]] bool packing() const { return packing_; }
  /// Bytes of all weights built so far in this pass.
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }

  /// Describes a tensor in the first pass, reads it in the second.
  [[nodiscard]] Result<SourceTensor> tensor(const std::string& name, const std::vector<std::int64_t>& shape) const;

  /// A tensor [size] as floats; no values in the first pass.
  [[nodiscard]] Result<std::vector<float>> floats(const std::string& name, std::int64_t size) const;
  /// Floats to the device; in the first pass `size` of them are counted.
  Result<Vector> vector(const std::vector<float>& values, std::int64_t size);

  /// A whole tensor [rows, cols] as a piece. Its rows are put in order if the file has them permuted.
  static MatrixPiece piece(const SourceTensor& tensor, std::int64_t rows, std::int64_t cols,
                           std::vector<std::int32_t> row_order);

  /// Packs the pieces, whose tensors are released afterwards. Null in the first pass. `names`: of the linear layers
  /// that the matrix is made of; none where it is no linear layer that may be rounded. Error: they are to have
  /// different formats.
  Result<Matrix> matrix(const MatrixSource& pieces, const std::vector<std::string>& names = {});
  /// The same of a feed-forward network whose neurons are chosen as `choice` says.
  Result<Neurons> neurons(const MatrixSource& gate_up, const std::vector<std::string>& gate_up_names,
                          const MatrixSource& down, const std::vector<std::string>& down_names,
                          const NeuronChoice& choice);
  void release(const std::vector<SourceTensor>& tensors) const;
  /// Releases `bytes` of a tensor from `offset` on: a tensor of many experts must not be resident as a whole.
  void release_slice(const SourceTensor& tensor, std::int64_t offset, std::int64_t bytes) const;

 private:
  static Status check_pieces(const MatrixSource& pieces);
  void count(std::uint64_t bytes);
  [[nodiscard]] Result<LinearFormat> format_of(const std::vector<std::string>& names) const;

  const TensorSource* source_;
  Backend* backend_;
  LinearFormat format_;
  LinearFormats formats_;
  bool packing_ = false;
  std::uint64_t bytes_ = 0, total_ = 0;
  std::function<void(std::uint64_t, std::uint64_t)> progress_;
};

}  // namespace millrace
