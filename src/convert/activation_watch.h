// How large the activations of a model are on a text: what thresholds of activation sparsity follow from.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "backend/forwarding_backend.h"
#include "recipe/activation_profile.h"

namespace millrace {

/// Counts of magnitudes by their upper 15 bits as floats, 128 of them for each power of two: a quantile is off by less
/// than a part in a hundred, and the share of values below it by what lies within that part.
class MagnitudeCounts {
 public:
  MagnitudeCounts() : counts_(kBins) {}

  void add(float value);

  /// Quantiles of what was added, linear within a bin; all 0 where nothing was.
  [[nodiscard]] MagnitudeQuantiles quantiles() const;

 private:
  static constexpr std::size_t kBins = std::size_t{1} << 15;

  std::vector<std::uint64_t> counts_;
  std::uint64_t all_ = 0;
};

/// A backend that counts the magnitudes of inputs of linear layers that have a name, and of |act(gate)| of gated FFNs,
/// while a model runs. Device memory must be the host's. Of experts it sees nothing.
class ActivationWatch final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  Result<std::unique_ptr<PackedMatrix>> pack(const MatrixSource& source, LinearFormat format) override;
  void linear(const Linear& linear, const float* x, std::int64_t rows, float* out, std::int64_t out_stride) override;
  /// The gate and what is behind it are computed once more, to be seen.
  void gated_ffn(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out) override;

  /// What was seen, in the order in which the layers were packed; without `model` and `tokens`.
  [[nodiscard]] ActivationProfile profile() const;

 private:
  struct Layer {
    std::vector<std::string> names;
    MagnitudeCounts inputs, gate;
    bool has_inputs = false, has_gate = false;
  };

  void look(const PackedMatrix* weight, const float* x, std::int64_t rows, std::int64_t stride);

  std::vector<std::unique_ptr<Layer>> layers_;
  std::map<const PackedMatrix*, Layer*> of_weight_;
  std::vector<float> gate_, hidden_, ones_;
};

}  // namespace millrace
