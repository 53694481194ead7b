// RequestSim: a cloud at the detail of requests. Nodes are StepNodes, gateways are their routers, and of the protocol
// there are the times that it takes: a message's way, the beat's second, how long until a dead node is missed.
#pragma once

#include <optional>
#include <unordered_map>
#include <vector>

#include "cluster/sim_clock.h"
#include "cluster/timing.h"
#include "simulate/batch_desk.h"
#include "simulate/churn.h"
#include "simulate/dispatch.h"
#include "simulate/simulation.h"
#include "simulate/step_node.h"
#include "simulate/tally.h"

namespace millrace {

class RequestSim {
 public:
  RequestSim(const std::vector<SimNode>& nodes, const Workload& work, const SimOptions& options);
  SimResult run();

 private:
  struct Request {
    NodeIndex node = 0;
    std::uint32_t attempt = 0;
    std::int32_t emitted = 0;  // tokens, on nodes that it has left
    double placed = 0.0;
    double untaken = 0.0;  // since when no node has it
    bool accepted = false;
    std::vector<NodeIndex> avoid = {};  // nodes that have failed it
  };
  /// Of a request that is on a node.
  struct Open {
    NodeWork work = {};
    double window = 0.0;             // when the window began that its node is watched in
    std::int64_t window_tokens = 0;  // that had come then
    int late = 0;                    // windows in a row that were
    int slo_moves = 0;
  };
  struct Node {
    StepNode model;
    std::optional<SimClock::EventId> due = {};
    bool beats = false;     // its next beat is scheduled: those that would say nothing new are left out
    double changed = -1e9;  // when something happened on it
    double back = 0.0;      // when it will be up again
    double missed = 0.0;    // when gateways will take it for dead
  };

  [[nodiscard]] double now() const;
  void at(double when, std::function<void()> call);
  void arrive();
  void place(std::size_t request);
  double way(std::size_t request, std::uint32_t attempt) const;
  void send(std::size_t request, const Route& route);
  void take(std::size_t request, std::uint32_t attempt);
  /// It leaves its node.
  void move(std::size_t request, std::uint32_t attempt);
  void left(std::size_t request, std::int64_t tokens, double when);
  /// Whether its node keeps the limits, as SloWatch has it; else it moves to one that is predicted to.
  void look_at_slo(std::size_t request, std::uint32_t attempt, bool for_first);
  /// In the window that its node is watched in.
  [[nodiscard]] bool tokens_are_late(std::size_t request, Open& open);
  /// Looks again when something may have changed.
  void watch_tokens(std::size_t request, const Open& open);
  /// At the gateway's first look behind that time: whether the first token has come, or those behind it are in time.
  void look_again(std::size_t request, double when, bool for_first = false);
  [[nodiscard]] std::size_t gateway_of(std::size_t request) const {
    return request % static_cast<std::size_t>(options_->gateways);
  }
  void happened(NodeIndex node);
  void schedule(NodeIndex node);
  void touch(NodeIndex node);
  void beat(NodeIndex node);
  void fail(NodeIndex node);
  void repair(NodeIndex node);
  void next_failure(NodeIndex node);
  /// Prices change at quarters of hours.
  void quarter();
  void look_at_batch();

  const std::vector<SimNode>* nodes_;
  const Workload* work_;
  const SimOptions* options_;
  ClusterTiming timing_;
  SimClock clock_;
  SimChurn churn_;
  SimDispatch dispatch_;
  SimTally tally_;
  SimBatchDesk desk_;
  std::vector<Node> node_states_;
  std::vector<Request> requests_;
  std::unordered_map<std::size_t, Open> open_;
  std::size_t next_arrival_ = 0;
  bool desk_looks_ = false;
  std::vector<NodeEvent> events_;
};

}  // namespace millrace
