#include "cluster/node_table.h"

#include <algorithm>

namespace millrace {

namespace {

constexpr std::size_t kLeastLog = 1024;
constexpr int kFaults = 3;  // that open a circuit breaker
constexpr Duration kOpen = std::chrono::seconds(5), kLongestOpen = std::chrono::minutes(5);

}  // namespace

NodeTable::Nodes::value_type& NodeTable::named(std::string_view node) {
  const auto found = nodes_.find(node);
  return found != nodes_.end() ? *found : *nodes_.emplace(std::string(node), NodeState{}).first;
}

void NodeTable::changed(Nodes::value_type& node) {
  if (log_.size() >= kLeastLog + 4 * nodes_.size()) {
    const std::size_t dropped = log_.size() / 2;
    log_.erase(log_.begin(), log_.begin() + static_cast<std::ptrdiff_t>(dropped));
    log_begins_ += dropped;
  }
  node.second.place = log_begins_ + log_.size();
  log_.push_back(&node);
}

void NodeTable::set_record(const NodeRecord& record, std::uint64_t incarnation) {
  auto& node = named(record.node);
  // What the registry has is so, also where it has lost its files and counts from the beginning.
  node.second.record = record;
  node.second.incarnation = incarnation;
  changed(node);
}

void NodeTable::remove(std::string_view name) {
  const auto node = nodes_.find(name);
  if (node == nodes_.end()) return;
  node->second.record.models.clear();
  changed(*node);
}

void NodeTable::set_terms(const std::string& name, const TermsNews& news) {
  auto& node = named(name);
  if (const auto* terms = std::get_if<NodeTerms>(&news)) {
    node.second.terms = *terms;
  } else {
    node.second.quarantine = std::get<Quarantine>(news).reason;
  }
  changed(node);
}

bool NodeTable::beat(std::string_view name, const Beat& beat, Duration now) {
  auto& node = named(name);
  NodeState& state = node.second;
  if (beat.incarnation < state.incarnation) return false;
  if (beat.incarnation == state.beat.incarnation && beat.number <= state.beat.number) return false;
  state.incarnation = beat.incarnation;
  state.beat = beat;
  state.heard = now;
  state.health = beat.draining ? NodeHealth::draining : NodeHealth::ready;
  changed(node);
  return true;
}

void NodeTable::heard(std::string_view name, Duration now) {
  const auto node = nodes_.find(name);
  // Only a beat brings back to life: what else comes may have been under way for long.
  if (node == nodes_.end() || node->second.health == NodeHealth::dead) return;
  node->second.heard = std::max(node->second.heard, now);
}

void NodeTable::failed(std::string_view name, Duration now) {
  const auto node = nodes_.find(name);
  if (node == nodes_.end() || ++node->second.faults < kFaults) return;
  const int times = std::min(node->second.faults - kFaults, 10);
  node->second.open = true;
  node->second.open_until = now + std::min(kLongestOpen, kOpen * (1 << times));
  changed(*node);
}

void NodeTable::served(std::string_view name) {
  const auto node = nodes_.find(name);
  if (node != nodes_.end()) node->second.faults = 0;
}

std::vector<std::string> NodeTable::look(Duration now) {
  std::vector<std::string> died;
  for (auto& named : nodes_) {
    NodeState& node = named.second;
    if (node.open && now >= node.open_until) {
      node.open = false;  // the next fault opens it again, for longer
      changed(named);
    }
    if (node.health == NodeHealth::dead) continue;
    const NodeHealth before = node.health;
    const Duration silent = now - node.heard;
    if (silent >= timing_.dead) {
      node.health = NodeHealth::dead;
      died.push_back(named.first);
    } else if (node.health != NodeHealth::draining) {
      node.health = silent >= timing_.suspect ? NodeHealth::suspect : NodeHealth::ready;
    }
    if (node.health != before) changed(named);
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
