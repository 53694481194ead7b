// What a simulated node's time costs, and who worked in it.
#pragma once

#include "cluster/terms.h"

namespace millrace {

struct SimWork {
  double busy_s = 0.0;      // of nodes
  double usd = 0.0;         // rent while it works, and power
  double energy_j = 0.0;    // PUE included
  double energy_usd = 0.0;  // of usd

  SimWork& operator+=(const SimWork& more) {
    busy_s += more.busy_s;
    usd += more.usd;
    energy_j += more.energy_j;
    energy_usd += more.energy_usd;
    return *this;
  }
};

/// Of one node.
class NodeMeter {
 public:
  explicit NodeMeter(const NodeTerms& terms) : terms_(&terms) {}

  /// What is measured from now on is at the prices of this moment.
  void set_time(UnixSeconds now) { usd_per_kwh_ = terms_->tariff.at(now); }

  /// It worked for so long, this share of it on batch work.
  void work(double seconds, double batch_share) {
    add(interactive_, seconds * (1.0 - batch_share), terms_->busy_watts, terms_->usd_per_hour);
    add(batch_, seconds * batch_share, terms_->busy_watts, terms_->usd_per_hour);
  }
  /// It was there and had nothing to do: power alone.
  void idle(double seconds) { add(idle_, seconds, terms_->idle_watts, 0.0); }

  [[nodiscard]] const SimWork& interactive() const { return interactive_; }
  [[nodiscard]] const SimWork& batch() const { return batch_; }
  [[nodiscard]] const SimWork& idle() const { return idle_; }

 private:
  void add(SimWork& to, double seconds, double watts, double usd_per_hour) const {
    constexpr double kSecondsPerHour = 3600.0, kJoulesPerKwh = 3.6e6;
    const double joules = seconds * watts * terms_->pue;
    const double power = joules / kJoulesPerKwh * usd_per_kwh_;
    to += {seconds, power + seconds * usd_per_hour / kSecondsPerHour, joules, power};
  }

  const NodeTerms* terms_;
  double usd_per_kwh_ = 0.0;
  SimWork interactive_, batch_, idle_;
};

}  // namespace millrace
