// GPTQ (Frantar et al. 2022, arXiv 2210.17323): inputs are rounded one after the other, and what rounding one changes
// in the layer's outputs is made up for by those that come later.
#pragma once

#include <cstdint>
#include <vector>

#include "convert/code_grid.h"
#include "core/result.h"
#include "core/thread_pool.h"

namespace millrace {

/// What the inputs of a layer say about its rounding: for the damped products H of its inputs, in the order in which
/// they are rounded, the upper triangle R with H^-1 = R^T R.
struct GptqFactor {
  std::vector<std::int32_t> order;  // inputs from the strongest to the weakest ("act order")
  std::vector<float> upper;         // [cols, cols] in that order
};

/// `products` [cols, cols]: means of x_i x_j. `damping`: share of the mean of the diagonal that is added to it. Error:
/// H is not positive definite, or not finite: more damping or more text helps.
Result<GptqFactor> gptq_factor(const std::vector<float>& products, std::int64_t cols, double damping, ThreadPool& pool);

/// weights [rows, cols]. The grids of groups are those of the weights as they come, so that groups stay side by side
/// whatever the order of rounding.
CodedRows gptq(const CodeFormat& format, ScaleType type, float unit, const float* weights, std::int64_t rows,
               std::int64_t cols, const GptqFactor& factor, ThreadPool& pool);

}  // namespace millrace
