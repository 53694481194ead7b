#include "cluster/cluster_view.h"

#include <chrono>

#include "cluster/subjects.h"

namespace millrace {

namespace {

constexpr Duration kForgetGateway = std::chrono::minutes(1);

}  // namespace

void ObservedRate::tell(std::int64_t count, Duration when) {
  if (when_ && when <= *when_) return;
  rate_.reset();
  if (when_ && count >= count_) {
    rate_ = static_cast<double>(count - count_) / std::chrono::duration<double>(when - *when_).count();
  }
  count_ = count;
  when_ = when;
}

void ClusterView::set_record(const std::string& node, const NodeRecord* record, std::uint64_t incarnation) {
  if (record != nullptr) {
    nodes_.set_record(*record, incarnation);
  } else {
    nodes_.remove(node);
  }
}

void ClusterView::take(std::string_view subject, std::span<const std::byte> message, Duration now) {
  if (const std::string_view gateway = gate_sender(subject); !gateway.empty()) {
    const auto beat = decode_gate_beat(message);
    if (!beat.ok()) {
      ++dropped_;
      return;
    }
    take_gate(gateway, *beat, now);
    return;
  }
  const std::string_view node = beat_sender(subject);
  const auto beat = decode_beat(message);
  if (node.empty() || !beat.ok()) {
    ++dropped_;
    return;
  }
  if (nodes_.beat(node, *beat, now)) rates_[std::string(node)].tell(beat->generated, now);
}

void ClusterView::take_gate(std::string_view name, const GateBeat& beat, Duration now) {
  Gateway& gateway = gateways_[std::string(name)];
  if (gateway.beat.life == beat.life && beat.number <= gateway.beat.number) return;  // late, or twice
  gateway.beat = beat;
  gateway.heard = now;
  gateway.health = beat.draining ? NodeHealth::draining : NodeHealth::ready;
  gateway.tokens.tell(beat.generated, now);
}

void ClusterView::look(Duration now) {
  (void)nodes_.look(now);
  for (auto& [name, gateway] : gateways_) {
    const Duration silent = now - gateway.heard;
    if (silent >= timing_.dead) {
      gateway.health = NodeHealth::dead;
    } else if (silent >= timing_.suspect && gateway.health == NodeHealth::ready) {
      gateway.health = NodeHealth::suspect;
    }
  }
  std::erase_if(gateways_, [&](const auto& entry) { return now - entry.second.heard >= kForgetGateway; });
}

std::optional<double> ClusterView::tokens_per_second(std::string_view node) const {
  const auto rate = rates_.find(node);
  return rate == rates_.end() ? std::nullopt : rate->second.per_second();
}

}  // namespace millrace
