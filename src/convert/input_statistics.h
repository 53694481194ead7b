// What the inputs of a model's linear layers are like on a text: what methods that round with care go by.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/forwarding_backend.h"
#include "core/result.h"

namespace millrace {

/// Of the inputs of one layer, or of several that share them.
struct InputStatistics {
  std::int64_t cols = 0, rows = 0;         // rows: inputs that were seen
  std::vector<float> mean_magnitude = {};  // [cols], of |x|
  std::vector<float> largest = {};         // [cols], of |x|
  std::vector<float> sample = {};          // [sample_rows, cols]: some of them, drawn from all alike
  std::int64_t sample_rows = 0;
  std::vector<float> products = {};  // [cols, cols]: the mean of x_i x_j; empty where it was not asked for
};

using StatisticsOfLayers = std::map<std::string, std::shared_ptr<const InputStatistics>>;

/// A backend that looks at the inputs of layers while a model runs. Device memory must be the host's.
class WatchingBackend final : public ForwardingBackend {
 public:
  /// `wanted`: which layers; `products`: theirs too. `sample_rows`: that are kept of a layer's inputs.
  WatchingBackend(std::unique_ptr<Backend> inner, std::function<bool(const std::string& layer)> wanted, bool products,
                  std::int64_t sample_rows);
  ~WatchingBackend() override;

  Result<std::unique_ptr<PackedMatrix>> pack(const MatrixSource& source, LinearFormat format) override;
  void linear(const Linear& linear, const float* x, std::int64_t rows, float* out, std::int64_t out_stride) override;
  /// In parts, since what the down projection reads is to be seen. Of experts nothing is.
  void gated_ffn(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out) override;

  /// What was seen so far. Error: no memory while it was looked at.
  [[nodiscard]] Result<StatisticsOfLayers> statistics();

 private:
  class Watch;

  void look(const PackedMatrix* weight, const float* x, std::int64_t rows, std::int64_t stride);

  std::function<bool(const std::string&)> wanted_;
  bool products_;
  std::int64_t sample_rows_;
  std::map<const PackedMatrix*, std::shared_ptr<Watch>> watches_;
  std::map<std::string, std::shared_ptr<Watch>> of_layers_;
  std::vector<float> gate_;
};

}  // namespace millrace
