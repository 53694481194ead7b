// Which share of the inputs each layer leaves out, so that a model loses no more than it may. Pure.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "core/result.h"

namespace millrace {

/// For each group of layers that read the same inputs: the share of these that counts as zero, 0 to 1.
using Sparsities = std::vector<double>;

/// KL(the model without skipping || with it), nats, mean over the tokens of a text.
struct Divergence {
  double mean = 0.0;
  std::optional<std::pair<double, double>> interval = {};  // of 95 %, where there are tokens enough

  [[nodiscard]] double highest() const { return interval ? interval->second : mean; }
};

using MeasureDivergence = std::function<Result<Divergence>(const Sparsities&)>;

/// What one group alone loses: number i with i of kSparsitySteps parts of its inputs left out. Where the end is missing
/// it loses too much.
using LossCurve = std::vector<double>;
inline constexpr std::size_t kSparsitySteps = 16;

/// The curves of groups [0, groups), each as far as it does not exceed `most`. `step` is called after each measurement.
Result<std::vector<LossCurve>> measure_curves(std::size_t groups, double most, const MeasureDivergence& measure,
                                              const std::function<void()>& step);

/// Sparsities that grow with a level from 0 to 1, in the order of least loss for a byte of weights that is not read
/// (the greedy allocation of Liu et al. 2024, arXiv 2408.14690, with the model's divergence as the error, and over all
/// layers instead of within a block). Losses of groups are taken to add up; where a curve is not convex its hull is.
class GreedyAllocation {
 public:
  /// `bytes`: of each group's weights.
  GreedyAllocation(const std::vector<std::size_t>& bytes, const std::vector<LossCurve>& curves);

  /// Those that leave unread a share `level` of all bytes that curves reach.
  [[nodiscard]] Sparsities at(double level) const;

 private:
  struct Increment {
    std::size_t group = 0;
    double sparsity = 0.0;  // that is added
    double bytes = 0.0;
    double loss_per_byte = 0.0;
  };
  std::size_t groups_ = 0;
  double all_bytes_ = 0.0;
  std::vector<Increment> increments_;  // of rising loss per byte
};

struct FoundSparsities {
  double level = 0.0;
  Sparsities sparsities;
  Divergence divergence;
};

/// The highest level, to a part in 256, at which the interval of the divergence does not reach above `target`. `at`
/// gives sparsities that do not fall as the level rises. Error: there is none above 0.
Result<FoundSparsities> highest_level(double target, const std::function<Sparsities(double level)>& at,
                                      const MeasureDivergence& measure, const std::function<void()>& step);
inline constexpr int kLevelSteps = 8;  // measurements of highest_level()

}  // namespace millrace
