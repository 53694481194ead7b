#include "convert/input_scaling.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "convert/dot.h"
#include "quant/small_float.h"

namespace millrace {

namespace {

constexpr int kStrengths = 20;            // steps from none to all
constexpr std::int64_t kRows = 64;        // of a weight, in a task
constexpr std::int64_t kMostRows = 1024;  // of a layer's outputs that are looked at

/// Columns of the weights that are all zero, or inputs that never were anything, are left alone.
std::vector<float> scales_of(ScalingMethod method, float strength, const InputStatistics& inputs,
                             const std::vector<float>& largest_weight) {
  std::vector<float> scales(inputs.mean_magnitude.size());
  double log_low = std::numeric_limits<double>::infinity(), log_high = -log_low;
  for (std::size_t k = 0; k < scales.size(); ++k) {
    const float x = method == ScalingMethod::awq ? inputs.mean_magnitude[k] : inputs.largest[k];
    const float w = method == ScalingMethod::awq ? 1.0f : largest_weight[k];
    scales[k] = x > 0.0f && w > 0.0f ? std::pow(x, strength) / std::pow(w, 1.0f - strength) : 0.0f;
    if (scales[k] <= 0.0f) continue;
    log_low = std::min(log_low, std::log(static_cast<double>(scales[k])));
    log_high = std::max(log_high, std::log(static_cast<double>(scales[k])));
  }
  // Around one, so that norms keep their size.
  const auto middle = static_cast<float>(std::exp(0.5 * (log_low + log_high)));
  for (float& scale : scales) scale = scale > 0.0f ? std::clamp(scale / middle, 1e-4f, 1e4f) : 1.0f;
  return scales;
}

/// Inputs as the format rounds them, a row at a time.
void round_inputs(const CodeFormat& format, std::vector<float>& rows, std::int64_t cols) {
  if (format.float_inputs || format.four_bits()) return;
  std::vector<std::int8_t> codes(static_cast<std::size_t>(cols));
  for (std::size_t first = 0; first < rows.size(); first += static_cast<std::size_t>(cols)) {
    float* row = rows.data() + first;
    float scale = 0.0f;
    if (format.kind == CodeKind::e4m3) {
      round_inputs_to_e4m3(row, cols, row, &scale);
      for (std::int64_t k = 0; k < cols; ++k) row[k] *= scale;
    } else {
      quantize_inputs(row, cols, 0, codes.data(), &scale);
      for (std::int64_t k = 0; k < cols; ++k) row[k] = scale * static_cast<float>(codes[static_cast<std::size_t>(k)]);
    }
  }
}

/// Of many outputs every n-th is looked at: n.
std::int64_t stride_of(const ScaledLayer& layer) {
  return std::max<std::int64_t>(1, layer.rows / kMostRows);
}

/// The layer's outputs on the sample as they are: [outputs that are looked at][sample rows].
std::vector<float> outputs_of(const ScaledLayer& layer, std::int64_t cols, const InputStatistics& inputs,
                              ThreadPool& pool) {
  const std::int64_t every = stride_of(layer), rows = layer.rows / every;
  std::vector<float> outputs(static_cast<std::size_t>(rows * inputs.sample_rows));
  pool.run(rows, [&](std::int64_t r, int) {
    for (std::int64_t s = 0; s < inputs.sample_rows; ++s) {
      outputs[static_cast<std::size_t>(r * inputs.sample_rows + s)] =
          dot(inputs.sample.data() + s * cols, layer.weights + r * every * cols, cols);
    }
  });
  return outputs;
}

/// The summed squares of what rounding changes in the layer's `outputs`, with inputs divided by `scales` and weights
/// multiplied.
double output_error(const ScaledLayer& layer, std::int64_t cols, const InputStatistics& inputs,
                    const std::vector<float>& outputs, const std::vector<float>& scales, ThreadPool& pool) {
  std::vector<float> rounded = inputs.sample;
  for (std::size_t i = 0; i < rounded.size(); ++i) rounded[i] /= scales[i % static_cast<std::size_t>(cols)];
  round_inputs(layer.format, rounded, cols);
  const std::int64_t every = stride_of(layer), rows = layer.rows / every;
  float largest = 0.0f;
  for (std::int64_t r = 0; r < layer.rows; ++r) {
    for (std::int64_t k = 0; k < cols; ++k) {
      largest = std::max(largest, std::fabs(layer.weights[r * cols + k] * scales[static_cast<std::size_t>(k)]));
    }
  }
  const float unit = tensor_unit(layer.format, largest);
  const std::int64_t tasks = (rows + kRows - 1) / kRows, step = layer.format.group == 0 ? cols : layer.format.group;
  std::vector<double> errors(static_cast<std::size_t>(tasks));
  pool.run(tasks, [&](std::int64_t task, int) {
    std::vector<float> weights(static_cast<std::size_t>(cols)), values(weights.size());
    for (std::int64_t r = task * kRows; r < std::min(rows, (task + 1) * kRows); ++r) {
      const float* original = layer.weights + r * every * cols;
      for (std::size_t k = 0; k < weights.size(); ++k) weights[k] = original[k] * scales[k];
      for (std::int64_t first = 0; first < cols; first += step) {
        const std::int64_t count = std::min(step, cols - first);
        const GroupGrid grid = grid_of(layer.format, layer.scales, unit, weights.data() + first, count);
        for (std::int64_t k = first; k < first + count; ++k) {
          const auto i = static_cast<std::size_t>(k);
          values[i] = grid.value(layer.format.kind, grid.code(layer.format.kind, weights[i], unit), unit);
        }
      }
      for (std::int64_t s = 0; s < inputs.sample_rows; ++s) {
        const double change = static_cast<double>(dot(rounded.data() + s * cols, values.data(), cols)) -
                              outputs[static_cast<std::size_t>(r * inputs.sample_rows + s)];
        errors[static_cast<std::size_t>(task)] += change * change;
      }
    }
  });
  double sum = 0.0;
  for (const double error : errors) sum += error;
  return sum * static_cast<double>(every);
}

}  // namespace

InputScaling find_input_scaling(ScalingMethod method, std::span<const ScaledLayer> layers, std::int64_t cols,
                                const InputStatistics& inputs, ThreadPool& pool) {
  std::vector<float> largest_weight(static_cast<std::size_t>(cols));
  for (const ScaledLayer& layer : layers) {
    for (std::int64_t i = 0; i < layer.rows * cols; ++i) {
      float& largest = largest_weight[static_cast<std::size_t>(i % cols)];
      largest = std::max(largest, std::fabs(layer.weights[i]));
    }
  }
  std::vector<std::vector<float>> outputs;
  for (const ScaledLayer& layer : layers) outputs.push_back(outputs_of(layer, cols, inputs, pool));
  const auto error = [&](const std::vector<float>& scales) {
    double sum = 0.0;
    for (std::size_t l = 0; l < layers.size(); ++l) {
      sum += output_error(layers[l], cols, inputs, outputs[l], scales, pool);
    }
    return sum;
  };
  const double without = error(std::vector<float>(static_cast<std::size_t>(cols), 1.0f));
  InputScaling best;
  double least = without;
  for (int step = 1; step <= kStrengths; ++step) {
    const float strength = static_cast<float>(step) / kStrengths;
    std::vector<float> scales = scales_of(method, strength, inputs, largest_weight);
    const double with = error(scales);
    if (!(with < least)) continue;
    least = with;
    best = {std::move(scales), strength, without > 0.0 ? with / without : 1.0};
  }
  return best;
}

}  // namespace millrace
