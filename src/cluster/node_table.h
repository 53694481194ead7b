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
  std::uint64_t revision = 0;     // of the record
  std::uint64_t incarnation = 0;  // the newest that was heard of
  NodeHealth health = NodeHealth::dead;
  Beat beat;  // the latest
  Duration heard{0};
};

class NodeTable {
 public:
  explicit NodeTable(const ClusterTiming& timing) : timing_(timing) {}

  void set_record(const NodeRecord& record, std::uint64_t incarnation);
  void remove(std::string_view node);

  /// `now`: on the gateway's own clock, which stands still while it can hear nobody. False: an old beat, or of an older
  /// process of this identity.
  bool beat(std::string_view node, const Beat& beat, Duration now);
  /// Something else came from it.
  void heard(std::string_view node, Duration now);

  /// Whose streams must move: nodes that have died since the last look.
  std::vector<std::string> look(Duration now);

  /// Null: not known.
  [[nodiscard]] const NodeState* find(std::string_view node) const;
  /// The model as the node serves it; null: it does not.
  [[nodiscard]] static const NodeModel* model(const NodeState& node, std::string_view name);

  [[nodiscard]] const std::map<std::string, NodeState, std::less<>>& nodes() const { return nodes_; }

 private:
  ClusterTiming timing_;
  std::map<std::string, NodeState, std::less<>> nodes_;
};

}  // namespace millrace
