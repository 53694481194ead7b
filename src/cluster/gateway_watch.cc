// What a gateway does by the clock: which nodes are dead, which streams are overdue.

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "cluster/gateway_streams.h"

namespace millrace {

namespace {

constexpr int kMostSloMoves = 2;                            // of a stream
constexpr Duration kFindServer = std::chrono::seconds(3);   // that nodes have, once a gateway has found it
constexpr Duration kMostOfALook = std::chrono::seconds(1);  // that counts of the time between two looks

}  // namespace

void GatewayStreams::look() {
  timer_ = transport_->after(timing_.look, [this] { look(); });
  const Instant now = transport_->now();
  const bool connected = transport_->connected();
  if (connected && !was_connected_) connected_ = now;
  was_connected_ = connected;
  if (connected && (connected_ == Instant{0} || now - connected_ >= kFindServer)) {
    clock_ += std::min(now - looked_, kMostOfALook);
  }
  looked_ = now;
  for (const std::string& node : nodes_.look(clock_)) move_all(node, Why::death);
  std::vector<StreamId> ids;
  ids.reserve(streams_.size());
  for (const auto& [id, stream] : streams_) ids.push_back(id);
  for (const StreamId id : ids) {
    if (Stream* stream = find(id)) look_at(id, *stream);
  }
  send_credit();
}

std::string GatewayStreams::no_room_for(const Stream& stream) const {
  const auto prompt = static_cast<std::int64_t>(stream.work.prompt.size());
  std::int64_t most = 0;
  for (const auto& [name, node] : nodes_.nodes()) {
    const NodeModel* model = NodeTable::model(node, stream.work.model);
    if (node.usable() && model != nullptr) most = std::max(most, model->max_tokens);
  }
  const std::int64_t answer = stream.work.task == Task::generate ? 1 : 0;
  if (most == 0 || prompt + answer <= most) return {};
  return fmt::format("the prompt has {} tokens, and the nodes that are there have sequences of at most {}", prompt,
                     most);
}

void GatewayStreams::look_at(StreamId id, Stream& stream) {
  // Who never had a node waits for one to come back, but nobody loses an answer that has not begun.
  if (stream.attempt == 0 && clock_ - stream.untaken >= timing_.no_node) {
    fail_stream(id,
                {"there is no node that may serve this, by its model, its region and its labels: see `millrace status`",
                 ErrorKind::unavailable});
    return;
  }
  if (stream.phase != Phase::running && clock_ - stream.untaken >= timing_.give_up) {
    fail_stream(id, {fmt::format("no node went on with this answer for {} s{}{}",
                                 std::chrono::duration_cast<std::chrono::seconds>(timing_.give_up).count(),
                                 stream.failure.empty() ? "" : "; the last one said: ", stream.failure),
                     stream.too_busy ? ErrorKind::busy : ErrorKind::unavailable});
    return;
  }
  switch (stream.phase) {
    case Phase::waiting:
      try_place(id, stream);
      if (stream.phase != Phase::waiting) return;
      if (std::string why = no_room_for(stream); !why.empty()) fail_stream(id, {std::move(why), ErrorKind::invalid});
      return;
    case Phase::placing:
      if (clock_ - stream.placed >= timing_.place_give_up) {
        move(id, stream, Why::fault);
      } else if (clock_ - stream.asked >= timing_.place_again) {
        stream.asked = clock_;
        ++counters_.placed_again;
        send_placement(id, stream);
      }
      return;
    case Phase::running: {
      const bool blocked = stream.paused || stream.next >= stream.allowed;
      if (blocked) {
        stream.heard = clock_;
        stream.slo.held(transport_->now());
      }
      if (clock_ - stream.heard >= (stream.any_token ? timing_.stalled : timing_.first_token)) {
        move(id, stream, Why::fault);
        return;
      }
      const bool gap = !stream.early.empty();
      if (clock_ - stream.credited >= (gap ? timing_.resend : timing_.credit_every)) credit_wishes_.push_back(id);
      look_at_slo(id, stream);
    }
  }
}

void GatewayStreams::look_at_slo(StreamId id, Stream& stream) {
  if (!stream.slo.missed(transport_->now()) || stream.slo_moves == kMostSloMoves) return;
  stream.avoid.push_back({stream.node, clock_ + timing_.avoid});
  const auto picked = pick(stream);
  const NodeState* state = picked ? nodes_.find(picked->node) : nullptr;
  const NodeModel* model = state == nullptr ? nullptr : NodeTable::model(*state, stream.work.model);
  // It pays its prompt once more: for a node that would be as slow, or another text, it does not move.
  if (model == nullptr || !picked->within_slo || (stream.any_token && model->numeric_class != stream.numeric_class)) {
    stream.avoid.pop_back();
    return;
  }
  ++stream.slo_moves;
  ++counters_.slo_moves;
  move(id, stream, Why::slow);
  place(id, stream, *picked);
}

}  // namespace millrace
