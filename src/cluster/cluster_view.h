// ClusterView: the nodes and gateways of a cluster as an observer sees them, from their beats and records. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "cluster/messages.h"
#include "cluster/node_table.h"
#include "cluster/timing.h"

namespace millrace {

constexpr std::string_view node_health_name(NodeHealth health) {
  switch (health) {
    case NodeHealth::ready:
      return "ready";
    case NodeHealth::draining:
      return "draining";
    case NodeHealth::suspect:
      return "suspect";
    case NodeHealth::dead:
      return "dead";
  }
  return "?";
}

/// How fast a count grows that its owner tells now and then.
class ObservedRate {
 public:
  void tell(std::int64_t count, Duration when);
  /// A second, between the last two that were told; none before that, and where the owner counts from 0 again.
  [[nodiscard]] std::optional<double> per_second() const { return rate_; }

 private:
  std::int64_t count_ = 0;
  std::optional<Duration> when_;
  std::optional<double> rate_;
};

/// All times are on one clock of the observer's.
class ClusterView {
 public:
  struct Gateway {
    GateBeat beat;
    NodeHealth health = NodeHealth::ready;
    Duration heard{0};
    ObservedRate tokens;
  };

  explicit ClusterView(const ClusterTiming& timing = {}) : timing_(timing), nodes_(timing) {}

  /// As Registry::Watcher.
  void set_record(const std::string& node, const NodeRecord* record, std::uint64_t incarnation);
  /// As Registry::TermsWatcher.
  void set_terms(const std::string& node, const TermsNews& news) { nodes_.set_terms(node, news); }
  /// A message on this subject, whichever; what is no beat is dropped and counted.
  void take(std::string_view subject, std::span<const std::byte> message, Duration now);
  /// Who is suspect or dead by now. Gateways that have been dead for a minute are forgotten: they have no record.
  void look(Duration now);

  [[nodiscard]] const NodeTable& nodes() const { return nodes_; }
  [[nodiscard]] const std::map<std::string, Gateway, std::less<>>& gateways() const { return gateways_; }
  /// Tokens that a node generates a second, where known.
  [[nodiscard]] std::optional<double> tokens_per_second(std::string_view node) const;
  [[nodiscard]] std::int64_t dropped() const { return dropped_; }

 private:
  void take_gate(std::string_view gateway, const GateBeat& beat, Duration now);

  ClusterTiming timing_;
  NodeTable nodes_;
  std::map<std::string, ObservedRate, std::less<>> rates_;
  std::map<std::string, Gateway, std::less<>> gateways_;
  std::int64_t dropped_ = 0;
};

}  // namespace millrace
