// NodeAgent: a node's membership in the cluster: it announces itself, beats, and serves streams.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "cluster/messages.h"
#include "cluster/node_streams.h"
#include "cluster/registry.h"
#include "cluster/timing.h"
#include "cluster/transport.h"

namespace millrace {

/// One thread: the transport's.
class NodeAgent {
 public:
  /// What a beat says of the engine.
  using Load = std::function<void(Beat&)>;

  /// `life`: as NodeStreams has it. `transport`, `registry` and `runner` must outlive it; the registry answers for as
  /// long as the transport lives.
  NodeAgent(Transport& transport, Registry& registry, NodeRecord record, StreamRunner& runner, Load load,
            std::uint32_t life, const ClusterTiming& timing = {});
  ~NodeAgent();
  NodeAgent(const NodeAgent&) = delete;
  NodeAgent& operator=(const NodeAgent&) = delete;

  /// No new streams; gateways are told, and move those that run. It is done when streams().count() is 0.
  void drain();

  [[nodiscard]] std::uint32_t life() const { return streams_.life(); }
  [[nodiscard]] const NodeStreams& streams() const { return streams_; }
  [[nodiscard]] NodeStreams& streams() { return streams_; }
  /// 0: not announced yet.
  [[nodiscard]] std::uint64_t incarnation() const { return incarnation_; }

 private:
  void announce();
  void beat();

  Transport* transport_;
  Registry* registry_;
  NodeRecord record_;
  Load load_;
  ClusterTiming timing_;
  NodeStreams streams_;
  std::uint64_t incarnation_ = 0;
  std::uint64_t beats_ = 0;
  bool draining_ = false, asked_ = false;
  Instant announced_{0};
  Transport::TimerId timer_ = 0;
};

}  // namespace millrace
