// NatsRegistry: the records of nodes in JetStream's key-value store, bucket `mr_nodes`.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cluster/nats_transport.h"
#include "cluster/registry.h"

namespace millrace {

/// A record as JSON text, and back. Error: what is wrong in it.
std::string record_json(const NodeRecord& record);
Result<NodeRecord> parse_record(std::string_view json);

/// Calls back on the transport's loop. What JetStream answers is waited for on threads of its own.
class NatsRegistry : public Registry {
 public:
  /// `transport` must outlive it. `on_message`: on the loop, in one line, what is wrong with the store or a record.
  /// `makes_bucket`: where there is none, watch() makes it; a node's credentials do not allow that.
  NatsRegistry(NatsTransport& transport, EventLoop& loop, std::function<void(const std::string&)> on_message,
               bool makes_bucket = false);
  ~NatsRegistry() override;

  void announce(const NodeRecord& record, std::function<void(Result<std::uint64_t>)> done) override;
  void watch(Watcher watcher) override;

 private:
  struct Shared;

  std::shared_ptr<Shared> shared_;
  std::thread writer_, watcher_;
};

}  // namespace millrace
