// SimBatchDesk: batch work that waits at the gateways, and leaves them as the plan says.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <vector>

#include "batches/batch_planner.h"
#include "simulate/dispatch.h"

namespace millrace {

class SimBatchDesk {
 public:
  /// Places a request on the node that was found for it.
  using Release = std::function<void(std::size_t request, const Route& route)>;

  /// The arguments must outlive it.
  SimBatchDesk(const std::vector<SimNode>& nodes, const Workload& work, const SimOptions& options,
               SimDispatch& dispatch, Release release);

  void add(std::size_t request);
  /// A request that it released has left its node; its node's room is free again.
  void left(NodeIndex node) { --running_[node]; }
  void moved(NodeIndex from, NodeIndex to) {
    --running_[from];
    ++running_[to];
  }
  /// Once a second or so: releases what may run. `now`: seconds from the start.
  void look(double now);

  [[nodiscard]] bool empty() const { return waiting_.empty(); }

 private:
  /// Nodes of one type, site and tariff.
  struct Group {
    std::vector<NodeIndex> nodes;
    double seconds_left = 0.0;  // of work that the plan has for it in this hour
    bool open = false;
  };

  void plan(double now);
  void set_open(Group& group, bool open);

  const std::vector<SimNode>* nodes_;
  const Workload* work_;
  const SimOptions* options_;
  SimDispatch* dispatch_;
  Release release_;
  std::deque<std::size_t> waiting_;  // by deadline
  std::vector<std::int64_t> running_;
  std::vector<Group> groups_;
  std::vector<std::size_t> group_of_;
  std::vector<BatchNodes> supply_;
  double planned_ = -1e9;
  UnixSeconds until_{0};
};

}  // namespace millrace
