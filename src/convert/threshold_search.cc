#include "convert/threshold_search.h"

#include <algorithm>

namespace millrace {

Result<std::vector<LossCurve>> measure_curves(std::size_t groups, double most, const MeasureDivergence& measure,
                                              const std::function<void()>& step) {
  std::vector<LossCurve> curves(groups, LossCurve{0.0});
  for (std::size_t group = 0; group < groups; ++group) {
    for (std::size_t i = 1; i < kSparsitySteps; ++i) {
      Sparsities sparsities(groups, 0.0);
      sparsities[group] = static_cast<double>(i) / kSparsitySteps;
      MILLRACE_TRY(const Divergence divergence, measure(sparsities));
      if (step) step();
      if (divergence.mean > most) break;
      curves[group].push_back(divergence.mean);
    }
  }
  return curves;
}

GreedyAllocation::GreedyAllocation(const std::vector<std::size_t>& bytes, const std::vector<LossCurve>& curves)
    : groups_(bytes.size()) {
  for (std::size_t group = 0; group < groups_; ++group) {
    const LossCurve& curve = curves[group];
    // Corners of the lower convex hull: from each the one that the flattest line leads to, of equals the farthest.
    for (std::size_t from = 0; from + 1 < curve.size();) {
      std::size_t to = from + 1;
      double flattest = curve[to] - curve[from];
      for (std::size_t i = from + 2; i < curve.size(); ++i) {
        const double slope = (curve[i] - curve[from]) / static_cast<double>(i - from);
        if (slope > flattest) continue;
        flattest = slope;
        to = i;
      }
      const double sparsity = static_cast<double>(to - from) / kSparsitySteps;
      const double of_weights = sparsity * static_cast<double>(bytes[group]);
      increments_.push_back({group, sparsity, of_weights, (curve[to] - curve[from]) / of_weights});
      all_bytes_ += of_weights;
      from = to;
    }
  }
  // Stable: a group's own increments stay in their order.
  std::ranges::stable_sort(increments_, {}, &Increment::loss_per_byte);
}

Sparsities GreedyAllocation::at(double level) const {
  Sparsities sparsities(groups_, 0.0);
  double left = level * all_bytes_;
  for (const Increment& increment : increments_) {
    if (left <= 0.0) break;
    sparsities[increment.group] += increment.sparsity * std::min(1.0, left / increment.bytes);
    left -= increment.bytes;
  }
  return sparsities;
}

Result<FoundSparsities> highest_level(double target, const std::function<Sparsities(double level)>& at,
                                      const MeasureDivergence& measure, const std::function<void()>& step) {
  std::optional<FoundSparsities> found;
  double low = 0.0, high = 1.0, least = 0.0;
  for (int i = 0; i < kLevelSteps; ++i) {
    const double level = (low + high) / 2;
    Sparsities sparsities = at(level);
    MILLRACE_TRY(const Divergence divergence, measure(sparsities));
    if (step) step();
    if (divergence.highest() <= target) {
      found = FoundSparsities{level, std::move(sparsities), divergence};
      low = level;
    } else {
      least = divergence.highest();
      high = level;
    }
  }
  if (!found) {
    return fail("no inputs can be left out within {} nats: the least that was tried loses up to {:.2g}", target, least);
  }
  return std::move(*found);
}

}  // namespace millrace
