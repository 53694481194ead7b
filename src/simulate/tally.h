// SimTally: what became of each request, and from that the figures of a simulation.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "simulate/simulation.h"

namespace millrace {

class SimTally {
 public:
  SimTally(const Workload& work, const SimOptions& options)
      : work_(&work), options_(&options), seen_(work.requests.size()) {}

  /// Times in seconds from the start, as the gateway sees them.
  void first_token(std::size_t request, double at);
  /// `cached`: tokens of the prompt that its node had.
  void ended(std::size_t request, double at, NodeIndex node, std::int64_t cached);
  void failed(std::size_t request);
  void migrated(std::size_t request) { ++seen_[request].migrations; }
  void node_failed() { ++node_failures_; }
  void billed(double usd) { billed_usd_ += usd; }

  [[nodiscard]] std::int64_t open() const { return static_cast<std::int64_t>(seen_.size()) - closed_; }
  [[nodiscard]] double last_end() const { return last_end_; }

  /// `meters`: one for each node.
  [[nodiscard]] SimResult result(const std::vector<SimNode>& nodes, const std::vector<const NodeMeter*>& meters) const;

 private:
  struct Seen {
    double first = -1.0, end = -1.0;
    std::int32_t cached = 0;
    NodeIndex node = 0;
    std::uint16_t migrations = 0;
    bool failed = false;
  };

  const Workload* work_;
  const SimOptions* options_;
  std::vector<Seen> seen_;
  std::int64_t closed_ = 0, node_failures_ = 0;
  double last_end_ = 0.0, billed_usd_ = 0.0;
};

}  // namespace millrace
