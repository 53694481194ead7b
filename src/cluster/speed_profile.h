// SpeedProfile: how fast a node is, by what gateways observe of it; what it says of itself is the beginning.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>

#include "cluster/node_work.h"
#include "cluster/router.h"

namespace millrace {

/// Pure. The model is Router's: TPOT = step + step_per_sequence * others, and a prompt's time = tokens / prefill +
/// step. Both are fitted to the latest streams by least absolute deviations (iteratively reweighted least squares:
/// Schlossmacher 1973), which single strange ones do not move.
class SpeedProfile {
 public:
  explicit SpeedProfile(const NodeSpeed& prior = {}) : prior_(prior), speed_(prior) {}

  /// What a stream has seen of the node, once, when it leaves it. `old`: which part of what was seen before still
  /// counts.
  void observe(const NodeWork& work, double old = 1.0);

  [[nodiscard]] const NodeSpeed& speed() const { return speed_; }
  [[nodiscard]] const NodeSpeed& prior() const { return prior_; }
  /// Streams that it has learned from.
  [[nodiscard]] std::int64_t observed() const { return observed_; }

 private:
  struct Tpot {
    double others = 0.0, seconds = 0.0, weight = 0.0;
  };
  struct Prompt {
    double seconds_per_token = 0.0, weight = 0.0;
  };

  /// Beside so many streams.
  [[nodiscard]] double prior_weight(std::size_t seen) const;
  void fit_step();
  void fit_prefill();

  NodeSpeed prior_, speed_;
  double prior_counts_ = 1.0;  // the part of it that still counts
  std::deque<Tpot> tpots_;     // the latest, newest first
  std::deque<Prompt> prompts_;
  std::int64_t observed_ = 0;
};

}  // namespace millrace
