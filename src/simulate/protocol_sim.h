// ProtocolSim: a cloud at the detail of the protocol. GatewayStreams, NodeAgents and NodeStreams are those that serve,
// on a simulated network; engines alone are models. What a node's prefix cache has reaches the routers beside the
// protocol, which has no message for it yet, when they take in a beat.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cluster/gateway_streams.h"
#include "cluster/node_agent.h"
#include "cluster/sim_clock.h"
#include "cluster/sim_network.h"
#include "cluster/sim_registry.h"
#include "simulate/batch_desk.h"
#include "simulate/churn.h"
#include "simulate/dispatch.h"
#include "simulate/simulation.h"
#include "simulate/step_runner.h"
#include "simulate/tally.h"

namespace millrace {

class ProtocolSim {
 public:
  ProtocolSim(const std::vector<SimNode>& nodes, const Workload& work, const SimOptions& options);
  SimResult run();

 private:
  struct Process {
    std::unique_ptr<Transport> transport;
    std::unique_ptr<SimRegistry> registry;
    std::unique_ptr<StepRunner> runner;
    std::unique_ptr<NodeAgent> agent;
  };
  struct Node {
    std::string name;
    std::optional<Process> process;  // nothing: it is down
    NodeMeter meter;
    std::uint64_t incarnation = 0, beat = 0;  // that the routers know
  };
  struct Gateway {
    std::unique_ptr<Transport> transport;
    std::unique_ptr<SimRegistry> registry;
    std::unique_ptr<GatewayStreams> streams;
  };

  /// Seconds since the first arrival; the cloud begins a little earlier.
  [[nodiscard]] double now() const;
  [[nodiscard]] double clock_s() const;
  void at(double when, std::function<void()> call);
  void start_node(NodeIndex node);
  void kill_node(NodeIndex node);
  void arrive();
  void submit(std::size_t request);
  Demand read(std::size_t request, const StreamNews& news);
  void learn(const NodeTable& table);
  std::optional<PickedNode> pick(std::size_t gateway, const PickQuery& query, const NodeTable& table);
  void look_at_batch();
  void quarter();
  [[nodiscard]] NodeIndex index_of(const std::string& name) const;

  const std::vector<SimNode>* nodes_;
  const Workload* work_;
  const SimOptions* options_;
  SimClock clock_;
  SimNetwork network_;
  SimRecords records_;
  SimDice dice_;
  SimChurn churn_;
  SimDispatch dispatch_;
  SimTally tally_;
  SimBatchDesk desk_;
  std::vector<Node> cloud_;
  std::vector<Gateway> gateways_;
  std::vector<std::optional<NodeIndex>> chosen_;  // of requests that the desk released: for their first placement
  std::vector<NodeIndex> at_;                     // where each request was placed last
  std::size_t next_arrival_ = 0;
  bool desk_looks_ = false;
};

}  // namespace millrace
