#include "cluster/node_table.h"

#include <algorithm>

namespace millrace {

void NodeTable::set_record(const NodeRecord& record, std::uint64_t incarnation) {
  NodeState& node = nodes_[record.node];
  // What the registry has is so, also where it has lost its files and counts from the beginning.
  node.record = record;
  node.revision = node.incarnation = incarnation;
}

void NodeTable::remove(std::string_view node) {
  if (const auto found = nodes_.find(node); found != nodes_.end()) found->second.record.models.clear();
}

bool NodeTable::beat(std::string_view name, const Beat& beat, Duration now) {
  const auto found = nodes_.find(name);
  NodeState& node = found != nodes_.end() ? found->second : nodes_[std::string(name)];
  if (beat.incarnation < node.incarnation) return false;
  if (beat.incarnation == node.beat.incarnation && beat.number <= node.beat.number) return false;
  node.incarnation = beat.incarnation;
  node.beat = beat;
  node.heard = now;
  node.health = beat.draining ? NodeHealth::draining : NodeHealth::ready;
  return true;
}

void NodeTable::heard(std::string_view name, Duration now) {
  const auto node = nodes_.find(name);
  // Only a beat brings back to life: what else comes may have been under way for long.
  if (node == nodes_.end() || node->second.health == NodeHealth::dead) return;
  node->second.heard = std::max(node->second.heard, now);
}

std::vector<std::string> NodeTable::look(Duration now) {
  std::vector<std::string> died;
  for (auto& [name, node] : nodes_) {
    if (node.health == NodeHealth::dead) continue;
    const Duration silent = now - node.heard;
    if (silent >= timing_.dead) {
      node.health = NodeHealth::dead;
      died.push_back(name);
    } else if (node.health != NodeHealth::draining) {
      node.health = silent >= timing_.suspect ? NodeHealth::suspect : NodeHealth::ready;
    }
  }
  return died;
}

const NodeState* NodeTable::find(std::string_view name) const {
  const auto node = nodes_.find(name);
  return node == nodes_.end() ? nullptr : &node->second;
}

const NodeModel* NodeTable::model(const NodeState& node, std::string_view name) {
  const auto model = std::ranges::find(node.record.models, name, &NodeModel::name);
  return model == node.record.models.end() ? nullptr : &*model;
}

}  // namespace millrace
