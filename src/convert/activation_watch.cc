#include "convert/activation_watch.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

namespace millrace {

void MagnitudeCounts::add(float value) {
  ++counts_[(std::bit_cast<std::uint32_t>(value) & 0x7fffffffu) >> 16];
  ++all_;
}

MagnitudeQuantiles MagnitudeCounts::quantiles() const {
  // What is no number, or too large for one (the last bins), counts as the largest that there is.
  constexpr std::uint32_t kInfinity = 0x7f80;
  const auto value_of = [](std::size_t bin) {
    const auto bits = static_cast<std::uint32_t>(bin);
    return bits < kInfinity ? std::bit_cast<float>(bits << 16) : std::numeric_limits<float>::max();
  };
  MagnitudeQuantiles quantiles;
  std::size_t bin = 0;
  std::uint64_t below = 0;  // of the bins before
  for (std::size_t i = 0; i < kMagnitudeQuantiles; ++i) {
    const double wanted = static_cast<double>(all_) * static_cast<double>(i) / (kMagnitudeQuantiles - 1);
    while (bin + 1 < kBins && static_cast<double>(below + counts_[bin]) < wanted) below += counts_[bin++];
    const double part =
        counts_[bin] == 0 ? 0.0 : (wanted - static_cast<double>(below)) / static_cast<double>(counts_[bin]);
    // Exact zeros have a bin that is nothing but zero.
    const double low = value_of(bin), high = bin == 0 ? 0.0 : value_of(bin + 1);
    quantiles.push_back(static_cast<float>(low + part * (high - low)));
  }
  return quantiles;
}

Result<std::unique_ptr<PackedMatrix>> ActivationWatch::pack(const MatrixSource& source, LinearFormat format) {
  MILLRACE_TRY(std::unique_ptr<PackedMatrix> matrix, inner().pack(source, format));
  if (!source.layers.empty()) {
    layers_.push_back(std::make_unique<Layer>());
    layers_.back()->names = source.layers;
    of_weight_[matrix.get()] = layers_.back().get();
  }
  return matrix;
}

void ActivationWatch::look(const PackedMatrix* weight, const float* x, std::int64_t rows, std::int64_t stride) {
  const auto found = of_weight_.find(weight);
  if (found == of_weight_.end()) return;
  found->second->has_inputs = true;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t k = 0; k < weight->cols(); ++k) found->second->inputs.add(x[r * stride + k]);
  }
}

void ActivationWatch::linear(const Linear& linear, const float* x, std::int64_t rows, float* out,
                             std::int64_t out_stride) {
  look(linear.weight, x, rows, linear.weight->cols());
  inner().linear(linear, x, rows, out, out_stride);
}

void ActivationWatch::gated_ffn(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out) {
  const std::int64_t width = ffn.intermediate();
  const auto down = of_weight_.find(ffn.down.weight);
  // A clamped gate belongs to experts alone (gpt-oss).
  if (down != of_weight_.end() && ffn.activation != Activation::swiglu_clamp) {
    look(ffn.gate_up.weight, x, rows, ffn.gate_up.weight->cols());
    inner().linear(ffn.gate_up, x, rows, scratch, 2 * width);
    const auto size = static_cast<std::size_t>(rows * width);
    gate_.resize(size);
    ones_.assign(size, 1.0f);
    for (std::int64_t r = 0; r < rows; ++r) {
      std::memcpy(gate_.data() + r * width, scratch + r * 2 * width, static_cast<std::size_t>(width) * sizeof(float));
    }
    hidden_ = gate_;
    inner().activate_multiply(ffn.activation, gate_.data(), ones_.data(), width, rows, width);
    inner().activate_multiply(ffn.activation, hidden_.data(), scratch + width, 2 * width, rows, width);
    for (const float value : gate_) down->second->gate.add(value);
    down->second->has_gate = true;
    look(ffn.down.weight, hidden_.data(), rows, width);
  }
  inner().gated_ffn(ffn, x, rows, scratch, out);
}

ActivationProfile ActivationWatch::profile() const {
  ActivationProfile profile;
  for (const auto& layer : layers_) {
    if (layer->has_inputs) profile.inputs.push_back({layer->names, layer->inputs.quantiles()});
    if (layer->has_gate) profile.gates.push_back({layer->names, layer->gate.quantiles()});
  }
  return profile;
}

}  // namespace millrace
