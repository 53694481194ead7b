#include "convert/neuron_watch.h"

#include <utility>

#include "core/float16.h"

namespace millrace {

Result<std::unique_ptr<PackedMatrix>> NeuronWatch::pack(const MatrixSource& source, LinearFormat format) {
  MILLRACE_TRY(std::unique_ptr<PackedMatrix> matrix, inner().pack(source, format));
  if (source.layers.empty()) return matrix;
  // Of "model.layers.0.mlp.gate_proj", or a fused "...gate_up_proj", the network's own name.
  const std::string& name = source.layers.front();
  const std::size_t part = name.rfind(".gate_");
  if (part != std::string::npos && name.find(".experts.") == std::string::npos) {
    samples_.push_back(std::make_unique<NeuronSamples>());
    samples_.back()->layer = name.substr(0, part);
    samples_.back()->inputs = matrix->cols();
    samples_.back()->neurons = matrix->rows() / 2;
    of_weight_[matrix.get()] = samples_.back().get();
  }
  return matrix;
}

void NeuronWatch::gated_ffn(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out) {
  const auto found = of_weight_.find(ffn.gate_up.weight);
  if (found != of_weight_.end() && gives_zeros(ffn.activation)) {
    NeuronSamples& samples = *found->second;
    const std::int64_t width = samples.neurons;
    inner().linear(ffn.gate_up, x, rows, scratch, 2 * width);
    for (std::int64_t k = 0; k < rows * samples.inputs; ++k) samples.x.push_back(float_to_bf16(x[k]));
    const std::size_t first = samples.fired.size();
    samples.fired.resize(first + static_cast<std::size_t>(rows * samples.row_bytes()));
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t i = 0; i < width; ++i) {
        if (scratch[r * 2 * width + i] <= 0.0f) continue;
        const std::size_t byte = first + static_cast<std::size_t>(r * samples.row_bytes() + i / 8);
        samples.fired[byte] = static_cast<std::uint8_t>(samples.fired[byte] | 1u << (i % 8));
      }
    }
  }
  inner().gated_ffn(ffn, x, rows, scratch, out);
}

}  // namespace millrace
