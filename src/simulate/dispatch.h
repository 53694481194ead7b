// SimDispatch: what gateways know of a simulated cloud, and where they send requests by it. One Router for each
// gateway, as live ones have, and a NodeWatch for each node: of its own streams a gateway knows at once what becomes of
// them, of others' and of caches it hears with beats, and how fast nodes are it learns.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "cluster/node_watch.h"
#include "simulate/node_queue.h"
#include "simulate/pool.h"
#include "simulate/simulation.h"
#include "simulate/workload.h"

namespace millrace {

class SimDispatch {
 public:
  /// The arguments must outlive it.
  SimDispatch(const std::vector<SimNode>& nodes, const Workload& work, const SimOptions& options);

  struct Query {
    std::size_t request = 0;  // its index in the work
    std::size_t gateway = 0;
    std::int64_t emitted = 0;  // tokens that came already
    std::span<const NodeIndex> avoid = {};
    bool open_only = false;  // nodes that are open for batch work
  };
  /// Nothing: no node may.
  std::optional<Route> pick(const Query& query, double now);

  /// What becomes of a stream that a gateway has placed, as RoutePicker is told. `now`, here and below: seconds of the
  /// clock that the work's times are of.
  void observe(std::size_t gateway, NodeIndex node, WorkStage stage, NodeWork& work, double now);
  /// What it is told that this work costs: $.
  [[nodiscard]] double billed(std::size_t gateway, NodeIndex node, const NodeWork& work) const;

  /// What gateways hear of a node.
  void beat(NodeIndex node, const NodeLoad& load, const SimPrefixCache::News& news, double now);
  void set_usable(NodeIndex node, bool usable);
  /// Its cache is gone.
  void forget_cache(NodeIndex node);
  void set_open(NodeIndex node, bool open);
  /// Prices of this moment, for all nodes.
  void set_prices(UnixSeconds now);

  [[nodiscard]] bool usable(NodeIndex node) const { return known_[node].usable; }
  [[nodiscard]] const NodeLoad& load(NodeIndex node) const { return known_[node].load; }
  [[nodiscard]] double expected_answer() const { return gateways_.front().expected.tokens(); }
  [[nodiscard]] bool fits_none(std::size_t request) const;
  /// The limits that a request is picked by: seconds.
  [[nodiscard]] double ttft_slo(std::size_t request) const;
  [[nodiscard]] double tpot_slo(std::size_t request) const;

 private:
  struct Known {
    bool usable = false, open = false;
    double usd_per_kwh = 0.0;
    NodeLoad load = {};
  };
  struct Gateway {
    Router router;
    std::vector<NodeWatch> nodes;
    std::vector<NodeIndex> computing;  // nodes that compute prompts of its own
    std::set<NodeIndex> resting = {};  // nodes that rest, and some that did
    double now = 0.0, hoped = 0.0;     // when it last did anything, and when the router was last told of them
    ExpectedAnswer expected = {};
  };

  RouteRequest route_request(const Query& query) const;
  void tell(NodeIndex node);
  void tell(Gateway& gateway, NodeIndex node);

  const std::vector<SimNode>* nodes_;
  const Workload* work_;
  const SimOptions* options_;
  std::vector<Gateway> gateways_;
  std::vector<Known> known_;
  std::uint64_t open_label_ = 0;
  std::uint64_t lots_ = 0;
  std::int64_t most_context_ = 0;
};

}  // namespace millrace
