// Scales for a layer's inputs that make it easier to round: weights are multiplied with them, and what computes the
// inputs is divided, so that the model computes the same. AWQ (Lin et al. 2023, arXiv 2306.00978) protects the inputs
// that matter most from the rounding of weights; SmoothQuant (Xiao et al. 2022, arXiv 2211.10438) takes outliers from
// inputs that are rounded too.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "convert/code_grid.h"
#include "convert/input_statistics.h"
#include "core/thread_pool.h"

namespace millrace {

enum class ScalingMethod : std::uint8_t { awq, smoothquant };

/// One of the layers that share inputs: weights [rows, cols].
struct ScaledLayer {
  CodeFormat format;
  ScaleType scales = ScaleType::f16;
  std::int64_t rows = 0;
  const float* weights = nullptr;
};

struct InputScaling {
  std::vector<float> scales;  // [cols]; empty: none helps
  float strength = 0.0f;      // the exponent that was chosen
  double gain = 1.0;          // the error of the outputs on the sample with them, over that without
};

/// Tries strengths from 0 to 1 in steps of 1/20: scale = mean |x|^a (AWQ), or max |x|^a / max |w|^(1 - a)
/// (SmoothQuant), and takes the one whose rounding changes the outputs least on the sample. Inputs are rounded as the
/// format says.
InputScaling find_input_scaling(ScalingMethod method, std::span<const ScaledLayer> layers, std::int64_t cols,
                                const InputStatistics& inputs, ThreadPool& pool);

}  // namespace millrace
