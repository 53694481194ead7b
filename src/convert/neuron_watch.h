// Which neurons of feed-forward networks fire on a text, and what the networks read.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "backend/forwarding_backend.h"
#include "convert/predictor_training.h"

namespace millrace {

/// A backend that keeps samples of gated FFNs whose activation gives exact zeros, while a model runs. Device memory
/// must be the host's. Of experts it sees nothing.
class NeuronWatch final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  Result<std::unique_ptr<PackedMatrix>> pack(const MatrixSource& source, LinearFormat format) override;
  /// The gate is computed once more, to be seen.
  void gated_ffn(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out) override;

  /// In the order in which the layers were packed; those that were not run have no rows.
  [[nodiscard]] const std::vector<std::unique_ptr<NeuronSamples>>& samples() const { return samples_; }

 private:
  std::vector<std::unique_ptr<NeuronSamples>> samples_;
  std::map<const PackedMatrix*, NeuronSamples*> of_weight_;
};

}  // namespace millrace
