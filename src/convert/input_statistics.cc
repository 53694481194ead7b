#include "convert/input_statistics.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <queue>
#include <utility>

#include "core/check.h"
#include "core/philox.h"

namespace millrace {

/// Gathers rows, and adds them up when there are enough of them.
class WatchingBackend::Watch {
 public:
  Watch(std::int64_t cols, bool products, std::int64_t sample_rows) : sample_limit_(sample_rows) {
    const auto size = static_cast<std::size_t>(cols);
    seen_.cols = cols;
    sums_.resize(size);
    seen_.largest.resize(size);
    if (products) seen_.products.resize(size * size);
  }

  void add(const float* x, std::int64_t rows, std::int64_t stride, Backend& backend) {
    const std::int64_t cols = seen_.cols;
    for (std::int64_t r = 0; r < rows; ++r) {
      const float* row = x + r * stride;
      for (std::int64_t k = 0; k < cols; ++k) {
        const auto i = static_cast<std::size_t>(k);
        const float size = std::fabs(row[k]);
        sums_[i] += size;
        seen_.largest[i] = std::max(seen_.largest[i], size);
      }
      keep(row);
      if (seen_.products.empty()) continue;
      waiting_.insert(waiting_.end(), row, row + cols);
      if (static_cast<std::int64_t>(waiting_.size()) == kRows * cols) add_products(backend);
    }
  }

  /// Means of what was added; more can be added afterwards.
  Result<std::shared_ptr<const InputStatistics>> statistics(Backend& backend) {
    add_products(backend);
    if (error_) return *error_;
    auto result = std::make_shared<InputStatistics>(seen_);
    const double share = seen_.rows > 0 ? 1.0 / static_cast<double>(seen_.rows) : 0.0;
    const auto mean = [share](double sum) { return static_cast<float>(sum * share); };
    for (const double sum : sums_) result->mean_magnitude.push_back(mean(sum));
    for (float& sum : result->products) sum = mean(sum);
    return std::shared_ptr<const InputStatistics>(std::move(result));
  }

 private:
  static constexpr std::int64_t kRows = 512;   // that are multiplied together
  static constexpr std::int64_t kBlock = 256;  // rows of the products at a time

  /// Of all rows those whose numbers have the smallest hashes: every n-th would keep time with the windows of the text,
  /// and see their first tokens more often than others.
  void keep(const float* row) {
    const auto number = static_cast<std::uint64_t>(seen_.rows++);
    const PhiloxBlock block =
        philox4x32_10({static_cast<std::uint32_t>(number), static_cast<std::uint32_t>(number >> 32), 0, 0}, {0, 0});
    const std::uint64_t hash = (std::uint64_t{block[0]} << 32) | block[1];
    const std::int64_t cols = seen_.cols;
    if (seen_.sample_rows < sample_limit_) {
      kept_.emplace(hash, seen_.sample_rows++);
      seen_.sample.insert(seen_.sample.end(), row, row + cols);
    } else if (!kept_.empty() && hash < kept_.top().first) {
      const std::int64_t place = kept_.top().second;
      kept_.pop();
      kept_.emplace(hash, place);
      std::copy_n(row, cols, seen_.sample.data() + place * cols);
    }
  }

  /// products += X^T X, by the backend that runs the model: X^T is both the weight and the inputs.
  void add_products(Backend& backend) {
    if (waiting_.empty() || error_) return;
    const std::int64_t cols = seen_.cols, rows = static_cast<std::int64_t>(waiting_.size()) / cols;
    const MatrixSource source{{{.format = QuantFormat::f32,
                                .data = reinterpret_cast<const std::byte*>(waiting_.data()),
                                .rows = cols,
                                .cols = rows,
                                .row_stride = sizeof(float),
                                .column_stride = cols * static_cast<std::int64_t>(sizeof(float))}}};
    auto packed = backend.pack(source, {});
    if (!packed.ok()) {
      error_ = packed.error();
      return;
    }
    std::vector<float> inputs(static_cast<std::size_t>(kBlock * rows)), out(static_cast<std::size_t>(kBlock * cols));
    for (std::int64_t first = 0; first < cols; first += kBlock) {
      const std::int64_t count = std::min(kBlock, cols - first);
      for (std::int64_t i = 0; i < count; ++i) {
        for (std::int64_t r = 0; r < rows; ++r) {
          inputs[static_cast<std::size_t>(i * rows + r)] = waiting_[static_cast<std::size_t>(r * cols + first + i)];
        }
      }
      backend.linear({packed->get(), nullptr}, inputs.data(), count, out.data(), cols);
      float* target = seen_.products.data() + first * cols;
      for (std::int64_t i = 0; i < count * cols; ++i) target[i] += out[static_cast<std::size_t>(i)];
    }
    waiting_.clear();
  }

  InputStatistics seen_;
  std::vector<double> sums_;
  std::vector<float> waiting_;
  std::int64_t sample_limit_;
  std::priority_queue<std::pair<std::uint64_t, std::int64_t>> kept_;  // hashes, and places in the sample
  std::optional<Error> error_;
};

WatchingBackend::WatchingBackend(std::unique_ptr<Backend> inner, std::function<bool(const std::string&)> wanted,
                                 bool products, std::int64_t sample_rows)
    : ForwardingBackend(std::move(inner)), wanted_(std::move(wanted)), products_(products), sample_rows_(sample_rows) {}

WatchingBackend::~WatchingBackend() = default;

Result<std::unique_ptr<PackedMatrix>> WatchingBackend::pack(const MatrixSource& source, LinearFormat format) {
  MILLRACE_TRY(std::unique_ptr<PackedMatrix> matrix, inner().pack(source, format));
  if (std::ranges::any_of(source.layers, wanted_)) {
    const auto watch = std::make_shared<Watch>(matrix->cols(), products_, sample_rows_);
    watches_[matrix.get()] = watch;
    for (const std::string& layer : source.layers) of_layers_[layer] = watch;
  }
  return matrix;
}

void WatchingBackend::look(const PackedMatrix* weight, const float* x, std::int64_t rows, std::int64_t stride) {
  const auto found = watches_.find(weight);
  if (found != watches_.end()) found->second->add(x, rows, stride, inner());
}

void WatchingBackend::linear(const Linear& linear, const float* x, std::int64_t rows, float* out,
                             std::int64_t out_stride) {
  look(linear.weight, x, rows, linear.weight->cols());
  inner().linear(linear, x, rows, out, out_stride);
}

void WatchingBackend::gated_ffn(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out) {
  const std::int64_t width = ffn.intermediate();
  look(ffn.gate_up.weight, x, rows, ffn.gate_up.weight->cols());
  if (ffn.activation == Activation::swiglu_clamp || !watches_.contains(ffn.down.weight)) {
    inner().gated_ffn(ffn, x, rows, scratch, out);
    return;
  }
  inner().linear(ffn.gate_up, x, rows, scratch, 2 * width);
  gate_.resize(static_cast<std::size_t>(rows * width));
  for (std::int64_t r = 0; r < rows; ++r) {
    std::memcpy(gate_.data() + r * width, scratch + r * 2 * width, static_cast<std::size_t>(width) * sizeof(float));
  }
  inner().activate_multiply(ffn.activation, gate_.data(), scratch + width, 2 * width, rows, width);
  linear(ffn.down, gate_.data(), rows, out, ffn.down.weight->rows());
}

Result<StatisticsOfLayers> WatchingBackend::statistics() {
  StatisticsOfLayers result;
  std::map<const Watch*, std::shared_ptr<const InputStatistics>> taken;
  for (const auto& [layer, watch] : of_layers_) {
    auto& statistics = taken[watch.get()];
    if (!statistics) {
      MILLRACE_TRY(statistics, watch->statistics(inner()));
    }
    result[layer] = statistics;
  }
  return result;
}

}  // namespace millrace
