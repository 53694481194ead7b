// SimCloud: nodes and gateways on a simulated network, clients that read streams, and faults that happen to all of it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cluster/gateway_streams.h"
#include "cluster/node_agent.h"
#include "cluster/sim_clock.h"
#include "cluster/sim_network.h"
#include "cluster/sim_registry.h"
#include "sim_runner.h"

namespace millrace::test {

/// What a client saw of a stream.
struct SeenStream {
  Placement asked;
  std::string gateway;
  StreamId id = 0;
  std::vector<std::vector<std::int32_t>> tokens;  // of each choice
  std::vector<bool> ended;
  std::vector<float> embedding;
  std::optional<StreamDone> done;
  bool cancelled = false, lost = false;  // by the client; with its gateway
  std::string wrong;                     // the first thing that must not be
};

struct SimCloudOptions {
  std::uint64_t seed = 1;
  int nodes = 8, gateways = 2;
  int classes = 2;
  ClusterTiming timing = {};
};

class SimCloud {
 public:
  explicit SimCloud(const SimCloudOptions& options);
  ~SimCloud();

  SimClock clock;
  SimNetwork network;
  SimDice dice;

  void start_node(const std::string& name);
  void kill_node(const std::string& name);
  void drain_node(const std::string& name);
  /// As a server does that loses its files: what nodes announced.
  void lose_records() { records_.records.clear(); }
  void start_gateway(const std::string& name);
  /// Its streams are lost.
  void kill_gateway(const std::string& name);

  [[nodiscard]] const std::vector<std::string>& node_names() const { return node_names_; }
  [[nodiscard]] const std::vector<std::string>& gateway_names() const { return gateway_names_; }
  [[nodiscard]] bool has_node(const std::string& name) const { return nodes_.contains(name); }
  [[nodiscard]] bool has_gateway(const std::string& name) const { return gateways_.contains(name); }
  GatewayStreams& gateway(const std::string& name) { return *gateways_.at(name)->streams; }
  NodeAgent& node(const std::string& name) { return *nodes_.at(name)->agent; }
  SimRunner& runner(const std::string& name) { return *nodes_.at(name)->runner; }
  [[nodiscard]] const std::string& class_of(const std::string& node) const { return classes_.at(node); }

  /// A client begins a stream of random length, sometimes reads slowly, sometimes leaves.
  void begin_stream();
  /// … this one, and pauses behind this share of the tokens.
  SeenStream& begin_stream(const std::string& gateway, Placement placement, double slow = 0.0);

  void run_for(Duration time) { clock.run_until(clock.now() + time); }

  [[nodiscard]] const std::vector<std::unique_ptr<SeenStream>>& seen() const { return seen_; }
  /// What is wrong with a stream that should have ended by now; empty: nothing.
  [[nodiscard]] std::string verdict(const SeenStream& stream) const;

  GatewayStreams::Counters gateway_counters;  // of all, the dead included
  NodeStreams::Counters node_counters;
  void count();  // takes in those that live

 private:
  struct Node {
    std::unique_ptr<Transport> transport;
    std::unique_ptr<SimRegistry> registry;
    std::unique_ptr<SimRunner> runner;
    std::unique_ptr<NodeAgent> agent;
  };
  struct Gateway {
    std::unique_ptr<Transport> transport;
    std::unique_ptr<SimRegistry> registry;
    std::unique_ptr<GatewayStreams> streams;
  };

  Demand read(SeenStream& stream, const StreamNews& news, double slow);

  SimCloudOptions options_;
  SimRecords records_;
  std::vector<std::string> node_names_, gateway_names_;
  std::map<std::string, std::string> classes_;
  std::map<std::string, std::unique_ptr<Node>> nodes_;
  std::map<std::string, std::unique_ptr<Gateway>> gateways_;
  std::vector<std::unique_ptr<SeenStream>> seen_;
};

}  // namespace millrace::test
