// NatsRegistry: the records of nodes in JetStream's key-value store, bucket `mr_nodes`, and what operators say of them,
// in `mr_operator`.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "cluster/nats_bucket.h"
#include "cluster/registry.h"

namespace millrace {

/// A record as JSON text, and back. Error: what is wrong in it.
std::string record_json(const NodeRecord& record);
Result<NodeRecord> parse_record(std::string_view json);

/// The buckets' names, and of the second one the key of a node's quarantine: gateways may write such keys, and no
/// terms.
constexpr const char* kNodesBucket = "mr_nodes";
constexpr const char* kOperatorBucket = "mr_operator";
std::string quarantine_key(std::string_view node);
/// What an entry of the second one says, and of which node. Error: its terms are wrong.
Result<std::pair<std::string, TermsNews>> parse_operator_entry(std::string_view key,
                                                               const std::optional<std::string>& value);

/// Whose credentials it is used with. Gateways and operators make buckets that are not there.
enum class RegistryRole : std::uint8_t { node, gateway };

/// Calls back on the transport's loop. A record is published as any other message: had the server to answer its writer,
/// it would do so on a subject of the writer's choice, be it another node's.
class NatsRegistry : public Registry {
 public:
  /// `transport` must outlive it. `on_message`: on the loop, in one line, what is wrong with the store or a record.
  NatsRegistry(NatsTransport& transport, EventLoop& loop, std::function<void(const std::string&)> on_message,
               RegistryRole role = RegistryRole::node, int replicas = 1);

  void announce(const NodeRecord& record, std::function<void(Result<std::uint64_t>)> done) override;
  void watch(Watcher watcher) override;
  void watch_terms(TermsWatcher watcher) override;
  void quarantine(const std::string& node, const std::string& reason) override;

 private:
  NatsTransport* transport_;
  std::uint64_t incarnation_;
  std::function<void(const std::string&)> on_message_;
  NatsBucket nodes_, operator_;
};

}  // namespace millrace
