#include "batches/batch_budget.h"

#include <algorithm>

namespace millrace {

NodeRoom node_room(const NodeTable& nodes, std::string_view model) {
  constexpr std::int64_t kScarce = 16;  // less than one in so many tokens of KV memory is free
  NodeRoom room;
  for (const auto& [name, node] : nodes.nodes()) {
    if (node.health != NodeHealth::ready || NodeTable::model(node, model) == nullptr) continue;
    const Beat& beat = node.beat;
    room.places += node.record.places;
    room.busy += std::min(node.record.places, beat.running + beat.waiting);
    if (beat.running >= node.record.places) {
      room.blocked += beat.waiting;
    } else if (beat.kv_free < beat.kv_tokens / kScarce) {
      room.starved += beat.waiting;
    }
  }
  return room;
}

BatchBudget batch_budget(const NodeRoom& room, std::int64_t gateways, const LinesInFlight& lines) {
  constexpr std::int64_t kReserved = 4;  // one place in so many
  gateways = std::max<std::int64_t>(gateways, 1);
  if (room.blocked > 0) {
    return {.start = 0, .yield = std::min(lines.now, (room.blocked + gateways - 1) / gateways)};
  }
  const std::int64_t reserve =
      std::min(std::max<std::int64_t>(0, room.places - 1), (room.places + kReserved - 1) / kReserved);
  const std::int64_t spare = room.places - reserve - room.busy;
  // Rounded up: where two gateways share one place, both may take it, and the next beat shows it.
  const std::int64_t share = spare > 0 ? (spare + gateways - 1) / gateways : spare;
  return {.start = std::max<std::int64_t>(0, lines.at_beats + share - lines.now), .yield = 0};
}

}  // namespace millrace
