// Grids of groups by what they do to a layer's outputs: the second step of AWQ (Lin et al. 2023, arXiv 2306.00978),
// which clips weights where that changes outputs less than coarse steps do.
#pragma once

#include <cstdint>
#include <vector>

#include "convert/code_grid.h"
#include "core/thread_pool.h"

namespace millrace {

/// What changed weights of a group change in the layer's outputs on a sample of inputs. Inputs of a group go together:
/// changes that cancel in the outputs cost nothing, and such that add up cost more than each by itself.
class GroupChanges {
 public:
  GroupChanges() = default;
  /// sample [rows, cols]; `group`: inputs of a group, 0: all of a row.
  GroupChanges(std::vector<float> sample, std::int64_t cols, std::int64_t group, ThreadPool& pool);

  /// For changes of the weights of group `group`, one for each of its inputs: the mean square of what becomes of the
  /// outputs.
  [[nodiscard]] double error(std::int64_t group, const float* changes) const;

 private:
  std::int64_t cols_ = 0, step_ = 0, rows_ = 0;
  std::vector<float> sample_;    // [rows][cols], of groups with more inputs than it has rows
  std::vector<float> products_;  // [groups][step][step] of all others: means of x_i x_j
  std::vector<float> squares_;   // [cols], means
  double together_ = 0.0;        // how far inputs are taken to go together as they do in the sample
};

/// Each group's grid as that of its weights, or from 0.6 to 1.375 times as wide, whichever changes outputs least.
/// weights [rows, cols].
CodedRows round_to_best_grids(const CodeFormat& format, ScaleType type, float unit, const float* weights,
                              std::int64_t rows, std::int64_t cols, const GroupChanges& outputs, ThreadPool& pool);

}  // namespace millrace
