// When the nodes of a simulated cloud fail and come back: for each node a series of its own, by the seed alone, so that
// all policies and both levels of detail meet the same failures.
#pragma once

#include <cmath>
#include <vector>

#include "cluster/sim_network.h"
#include "simulate/pool.h"

namespace millrace {

class SimChurn {
 public:
  SimChurn(const std::vector<SimNode>& nodes, std::uint64_t seed, bool on) {
    series_.reserve(nodes.size());
    for (std::size_t n = 0; n < nodes.size(); ++n) {
      Series series{.dice = SimDice(seed * 0x9e3779b97f4a7c15u + n), .mtbf = nodes[n].mtbf_s, .mttr = nodes[n].mttr_s};
      series.phase = series.dice.uniform();
      series.fails = on && series.mtbf > 0.0;
      // As if it had run for ever.
      series.starts_down = series.fails && series.dice.chance(series.mttr / (series.mtbf + series.mttr));
      series_.push_back(series);
    }
  }

  [[nodiscard]] bool fails(NodeIndex node) const { return series_[node].fails; }
  [[nodiscard]] bool starts_down(NodeIndex node) const { return series_[node].starts_down; }
  /// Of a second, at which it beats.
  [[nodiscard]] double phase(NodeIndex node) const { return series_[node].phase; }

  /// Seconds that it is up, and that it is down, the next time; memoryless.
  double up_for(NodeIndex node) { return draw(series_[node], series_[node].mtbf); }
  double down_for(NodeIndex node) { return draw(series_[node], series_[node].mttr); }

 private:
  struct Series {
    SimDice dice;
    double mtbf = 0.0, mttr = 0.0, phase = 0.0;
    bool fails = false, starts_down = false;
  };

  static double draw(Series& series, double mean) { return -mean * std::log(1.0 - series.dice.uniform()); }

  std::vector<Series> series_;
};

}  // namespace millrace
