// SpeedProfile: how fast a node is, by what gateways observe of it; what it says of itself is the beginning.
#pragma once

#include "cluster/node_work.h"
#include "cluster/router.h"

namespace millrace {

/// Pure. The model is Router's: TPOT = step + step_per_sequence * others, and a prompt's time = tokens / prefill +
/// step.
class SpeedProfile {
 public:
  explicit SpeedProfile(const NodeSpeed& prior = {});

  /// What a stream has seen of the node, once, when it leaves it.
  void observe(const NodeWork& work);

  [[nodiscard]] NodeSpeed speed() const;
  /// Streams that it has learned from.
  [[nodiscard]] std::int64_t observed() const { return observed_; }

 private:
  void observe_step(double others, double seconds, double weight);
  void observe_prefill(double seconds_per_token, double tokens);

  // Recursive least squares with forgetting (Haykin, "Adaptive Filter Theory", ch. 13): of (step, step_per_sequence),
  // relative to the prior, so that both are of one size.
  double unit_;                // seconds
  double step_ = 1.0, slope_;  // in units
  double p00_ = 1.0, p01_ = 0.0, p11_ = 1.0;
  double log_prefill_;  // of tokens a second
  double prefill_weight_ = 1.0;
  std::int64_t observed_ = 0;
};

}  // namespace millrace
