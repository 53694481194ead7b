// SimDispatch: what gateways know of a simulated cloud, and where they send requests by it. One Router for each
// gateway, as live ones have; what it learns of loads and caches comes with beats.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

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
    double waited = 0.0;       // seconds since it came
    std::int64_t emitted = 0;  // tokens that came already
    std::span<const NodeIndex> avoid = {};
    bool open_only = false;  // nodes that are open for batch work
  };
  /// Nothing: no node may. What is picked counts as placed.
  std::optional<Route> pick(const Query& query, double now);
  /// The same without placing it.
  std::optional<Route> look(const Query& query);
  void place(const Query& query, const Route& route, double now);

  /// What gateways hear of a node.
  void beat(NodeIndex node, const NodeLoad& load, const SimPrefixCache::News& news, double now);
  void set_usable(NodeIndex node, bool usable);
  /// Its cache is gone.
  void forget_cache(NodeIndex node);
  void set_open(NodeIndex node, bool open);
  /// Prices of this moment, for all nodes.
  void set_prices(UnixSeconds now);
  /// An answer of so many tokens has ended: what others are expected to have goes by it.
  void answered(std::int64_t tokens);

  [[nodiscard]] bool usable(NodeIndex node) const { return known_[node].usable; }
  [[nodiscard]] const NodeLoad& load(NodeIndex node) const { return known_[node].load; }
  [[nodiscard]] double expected_answer() const { return expected_answer_; }
  [[nodiscard]] bool fits_none(std::size_t request) const;

 private:
  struct Known {
    bool usable = false, open = false;
    double usd_per_kwh = 0.0;
    NodeLoad load = {};
  };

  RouteRequest route_request(const Query& query) const;
  void tell(NodeIndex node);

  const std::vector<SimNode>* nodes_;
  const Workload* work_;
  const SimOptions* options_;
  std::vector<Router> routers_;
  std::vector<Known> known_;
  std::uint64_t open_label_ = 0;
  std::uint64_t lots_ = 0;
  double expected_answer_ = 256.0;  // tokens
  std::int64_t most_context_ = 0;
};

}  // namespace millrace
