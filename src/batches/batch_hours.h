// BatchHours: in which hours lines of batches begin: those in which nodes' spare time costs least, as far as that is
// known and deadlines can wait (batch_planner.h). Pure.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "batches/batch_budget.h"
#include "batches/batch_planner.h"
#include "cluster/node_table.h"

namespace millrace {

/// Nodes that are alike in what they cost and, within a factor of about two, in their speed.
struct BatchSupply {
  std::uint64_t kind = 0;  // of what they are alike in, a hash
  BatchNodes nodes = {};   // means; `spare` is not set
  double count = 0.0;      // of nodes
  double busy = 0.0;       // places that are taken, or will be by what waits, by the latest beats
};

/// How fast a node is with its model.
using SpeedOf = std::function<NodeSpeed(const std::string& node, const NodeModel& model)>;

/// Nodes that may be used, by kinds, at most 64 of these: nodes of further ones are left out, and less room is planned
/// with than there is.
std::vector<BatchSupply> batch_supply(const NodeTable& nodes, std::string_view model, const SpeedOf& speed_of);

/// Decides by what any gateway knows, so all gateways of a cluster make nearly the same plan, and each takes its part
/// of it. It never stands in the way where it cannot plan: nodes that cost nothing, or of which nothing is known, work
/// that has no room before its deadline.
class BatchHours {
 public:
  /// Any thread.
  void set_supply(std::vector<BatchSupply> supply);

  /// As BatchStartLimit. One thread.
  std::vector<std::int64_t> limits(const StartQuery& query);

  static constexpr double kUrgent = 3600.0;  // seconds before its deadline a batch runs at any price

 private:
  static constexpr Duration kPlanEvery = std::chrono::seconds(1);

  struct Share {
    double of_places = 0.0;  // that others than lines take, on an average of the last minutes
    bool told = false;
  };
  struct Limit {
    std::int64_t at_once = 0, in_all = 0;  // lines of this gateway, from the plan on
    std::int64_t lines = 0;                // that were left then, of all gateways
  };

  void learn(const StartQuery& query, const std::vector<BatchSupply>& supply);
  void plan(const StartQuery& query);

  std::mutex mutex_;
  std::vector<BatchSupply> supply_;  // guarded by mutex_
  std::map<std::uint64_t, Share> shares_;
  std::set<std::uint64_t> open_;  // kinds that lines run on, by the latest plan; none: any
  std::map<std::string, Limit, std::less<>> limits_;
  Duration planned_{0}, learned_{0};
  bool ever_planned_ = false;
};

}  // namespace millrace
