// Tests with a real NATS server: a loop that runs until something holds, and nodes and gateways on it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cluster/gateway_streams.h"
#include "cluster/nats_registry.h"
#include "cluster/nats_transport.h"
#include "cluster/node_agent.h"
#include "nats_server.h"
#include "sim_runner.h"

namespace millrace::test {

using std::chrono::milliseconds;
using std::chrono::seconds;

class Nats : public testing::Test {
 protected:
  void SetUp() override {
    if (!NatsServer::available()) GTEST_SKIP() << "this machine has no nats-server (Debian: apt install nats-server)";
    server_.emplace();
  }

  std::unique_ptr<NatsTransport> connect(const std::string& name) {
    auto transport = NatsTransport::connect(server_->options(name), loop_,
                                            [this](const std::string& message) { messages_.push_back(message); });
    EXPECT_TRUE(transport.ok()) << transport.error().message;
    return std::move(*transport);
  }

  /// Runs the loop until this holds; false after ten seconds.
  bool run_until(const std::function<bool()>& holds, Duration most = seconds(10)) {
    const Instant end = loop_.now() + most;
    bool held = holds();
    std::function<void()> look = [&] {
      held = holds();
      if (held || loop_.now() >= end) {
        loop_.stop();
      } else {
        loop_.after(milliseconds(5), look);
      }
    };
    if (held) return true;
    loop_.after(milliseconds(5), look);
    loop_.run();
    return held;
  }

  EventLoop loop_;
  std::optional<NatsServer> server_;
  std::vector<std::string> messages_;
};

/// A node whose engine is simulated, and all that it needs.
struct LiveNode {
  LiveNode(std::unique_ptr<NatsTransport> own, EventLoop& loop, const std::string& name)
      : transport(std::move(own)),
        registry(*transport, loop, [](const std::string&) {}),
        runner(*transport, "m", "c", milliseconds(10), 16),
        agent(
            *transport, registry, {name, 16, {{"m", "c"}}}, runner,
            [this](Beat& beat) { beat.running = static_cast<std::int64_t>(runner.held()); }, 1) {}

  std::unique_ptr<NatsTransport> transport;
  NatsRegistry registry;
  SimRunner runner;
  NodeAgent agent;
};

struct LiveGateway {
  LiveGateway(std::unique_ptr<NatsTransport> own, EventLoop& loop)
      : transport(std::move(own)),
        registry(
            *transport, loop, [](const std::string&) {}, RegistryRole::gateway),
        streams(*transport, registry, "gateway", pick, 7) {}

  static std::optional<PickedNode> pick(const PickQuery& query, const NodeTable& table) {
    std::optional<PickedNode> best;
    for (const auto& [name, node] : table.nodes()) {
      if (node.health != NodeHealth::ready || NodeTable::model(node, query.placement.model) == nullptr) continue;
      if (!best || node.beat.running < table.find(best->node)->beat.running) best = PickedNode{.node = name};
    }
    return best;
  }

  std::unique_ptr<NatsTransport> transport;
  NatsRegistry registry;
  GatewayStreams streams;
};

inline Placement work(std::int64_t tokens) {
  Placement placement{.model = "m", .prompt = {1, 2, 3}, .max_new_tokens = tokens};
  placement.sampling.seed = 5;
  return placement;
}

}  // namespace millrace::test
