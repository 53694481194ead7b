// NodeTable: the nodes as one gateway sees them: who is there, by beats and by what it hears. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "cluster/messages.h"
#include "cluster/registry.h"
#include "cluster/timing.h"

namespace millrace {

enum class NodeHealth : std::uint8_t { ready, draining, suspect, dead };

struct NodeState {
  NodeRecord record;
  NodeTerms terms = {};
  std::string quarantine = {};    // why it gets no streams; empty: it does
  std::uint64_t incarnation = 0;  // the newest that was heard of
  NodeHealth health = NodeHealth::dead;
  Beat beat;  // the latest
  Duration heard{0};
  int faults = 0;           // streams that it has failed since one had a token from it
  Duration open_until{0};   // its circuit breaker
  bool open = false;        // … lets nothing through
  std::uint64_t place = 0;  // of its latest change among all nodes' changes

  /// May get new streams.
  [[nodiscard]] bool usable() const { return health == NodeHealth::ready && quarantine.empty() && !open; }
};

class NodeTable {
 public:
  using Nodes = std::map<std::string, NodeState, std::less<>>;

  explicit NodeTable(const ClusterTiming& timing) : timing_(timing) {}

  void set_record(const NodeRecord& record, std::uint64_t incarnation);
  void remove(std::string_view node);
  void set_terms(const std::string& node, const TermsNews& news);

  /// `now`: on the gateway's own clock, which stands still while it can hear nobody. False: an old beat, or of an older
  /// process of this identity.
  bool beat(std::string_view node, const Beat& beat, Duration now);
  /// Something else came from it.
  void heard(std::string_view node, Duration now);

  /// It has failed a stream. After some, one after the other, it gets no new ones for a while, which doubles each time
  /// (a circuit breaker: Nygard 2007, "Release It!").
  void failed(std::string_view node, Duration now);
  /// A stream has a token from it.
  void served(std::string_view node);

  /// Whose streams must move: nodes that have died since the last look.
  std::vector<std::string> look(Duration now);

  /// Null: not known.
  [[nodiscard]] const NodeState* find(std::string_view node) const;
  /// The model as the node serves it; null: it does not.
  [[nodiscard]] static const NodeModel* model(const NodeState& node, std::string_view name);

  [[nodiscard]] const Nodes& nodes() const { return nodes_; }

  /// Calls with every node that has changed since this place, once or more, and moves the place on. 0: with all.
  template <typename Call>
  void for_changed(std::uint64_t& place, const Call& call) const {
    if (place < log_begins_) {
      for (const auto& node : nodes_) call(node.first, node.second);
    } else {
      for (std::size_t i = place - log_begins_; i < log_.size(); ++i) {
        if (log_[i]->second.place == log_begins_ + i) call(log_[i]->first, log_[i]->second);
      }
    }
    place = log_begins_ + log_.size();
  }

 private:
  void changed(Nodes::value_type& node);
  Nodes::value_type& named(std::string_view node);

  ClusterTiming timing_;
  Nodes nodes_;
  std::vector<const Nodes::value_type*> log_;  // nodes stay where they are
  std::uint64_t log_begins_ = 1;
};

}  // namespace millrace
