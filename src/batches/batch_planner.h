// When batch work runs: how much of it now, and on which nodes, so that it costs least and is done in time. Pure.
//
// Time until the last deadline is cut into hours, as tariffs are. A node's spare time in an hour is room for work, at
// what a unit of work costs there and then, rent and power. Work is put into the cheapest room before its deadline,
// the most urgent first: what may run by an early deadline may run by a later one too, so this finds a place for all
// work wherever there is one. What fell into the present hour runs now. The plan is made anew each hour, and whenever
// much has changed.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cluster/router.h"
#include "cluster/tariff.h"

namespace millrace {

/// Nodes that are alike: one speed, price and tariff.
struct BatchNodes {
  NodeSpeed speed = {};
  std::int64_t places = 16;  // of each
  double usd_per_hour = 0.0, watts = 0.0, pue = 1.0;
  Tariff tariff = {};
  double spare = 0.0;  // nodes' worth of time that nothing else needs, on an average from now on
};

/// Work with one deadline.
struct BatchLines {
  UnixSeconds deadline{0};
  double prompt_tokens = 0.0, answer_tokens = 0.0;  // of all lines, not begun
};

struct BatchPlanOptions {
  double use_of_spare = 0.7;   // of spare time; the rest is for what was not foreseen
  double early_share = 0.1;    // work is planned to be done before its deadline by this share of the time to it …
  double early_seconds = 900;  // … and by this
  bool rent_counts = true;     // false: power alone decides
};

struct BatchPlan {
  UnixSeconds until{0};         // when it must be made anew: the end of this hour
  std::vector<double> seconds;  // of work in this hour, by node group: spare nodes' time as below
  bool late = false;            // not all work has room before its deadline: all nodes are to run what they can
};

/// Seconds of such a node that work takes where all its places are taken.
double batch_seconds(const NodeSpeed& speed, std::int64_t places, double prompt_tokens, double answer_tokens);

/// Deadlines may have passed: such work is planned as if it had an hour.
BatchPlan plan_batch(UnixSeconds now, std::span<const BatchNodes> nodes, std::span<const BatchLines> lines,
                     const BatchPlanOptions& options = {});

}  // namespace millrace
