// A model run with thresholds that may change from one step to the next: what a recipe's "activations" would lose,
// without packing the weights for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/forwarding_backend.h"
#include "convert/activation_watch.h"
#include "recipe/input_skipping.h"

namespace millrace {

/// A backend that zeroes inputs before the inner one multiplies with them, in rows of answers, as an InputSkip says it;
/// with SkipMethod::cats hidden numbers whose gate is small. Differences to a backend that has been told when it packed
/// are those of rounding. Device memory must be the host's. Used from one thread.
class ThresholdBackend final : public ForwardingBackend {
 public:
  /// Layers that read the same inputs, and so have one threshold.
  struct Group {
    std::vector<std::string> layers;
    std::size_t bytes = 0;  // of their weights
    std::int64_t inputs = 0, outputs = 0;
  };
  /// Numbers of inputs of a group in rows of answers.
  struct Counts {
    std::int64_t kept = 0, all = 0;
  };

  ThresholdBackend(std::unique_ptr<Backend> inner, SkipMethod method) : ForwardingBackend(std::move(inner)) {
    skipping_.method = method;
  }

  Result<std::unique_ptr<PackedMatrix>> pack(const MatrixSource& source, LinearFormat format) override;
  void begin(const ForwardBatch& batch) override;
  void linear(const Linear& linear, const float* x, std::int64_t rows, float* out, std::int64_t out_stride) override;
  void gated_ffn(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out) override;

  /// What the method is for, in the order in which it was packed.
  [[nodiscard]] const std::vector<Group>& groups() const { return groups_; }
  /// From now on; one for each group, or none where it is to be computed in full. Counts begin anew.
  void set(const std::vector<std::optional<float>>& thresholds);
  [[nodiscard]] const std::vector<Counts>& counts() const { return counts_; }
  /// While it is watching it counts the magnitudes that thresholds are for.
  void watch(bool on) { watching_ = on; }
  [[nodiscard]] MagnitudeQuantiles magnitudes(std::size_t group) const { return magnitudes_[group].quantiles(); }

 private:
  [[nodiscard]] std::optional<std::size_t> group_of(const PackedMatrix* weight) const;
  [[nodiscard]] bool touches(std::optional<std::size_t> group) const;
  /// Zeroes of x [rows][cols] what `deciding` [rows][cols] is small for; they may be the same.
  void zero(std::size_t group, const float* deciding, float* x, std::int64_t rows, std::int64_t cols);

  InputSkipping skipping_;
  std::vector<Group> groups_;
  std::map<const PackedMatrix*, std::size_t> of_weight_;
  std::vector<std::optional<float>> thresholds_;
  std::vector<Counts> counts_;
  std::vector<MagnitudeCounts> magnitudes_;
  bool watching_ = false;
  std::vector<std::uint8_t> answers_;  // rows of the batch
  std::vector<float> copy_, gate_, hidden_, ones_;
};

}  // namespace millrace
