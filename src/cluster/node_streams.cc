#include "cluster/node_streams.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>

namespace millrace {

namespace {

constexpr std::size_t kAssembled = 4 * kMaxPlacement;  // bytes of placements that are not whole yet
constexpr std::size_t kMostGateways = 64;              // that are told apart
constexpr Duration kAssemblyTime = std::chrono::seconds(10);

}  // namespace

NodeStreams::NodeStreams(Transport& transport, std::string node, StreamRunner& runner, std::uint32_t life,
                         const ClusterTiming& timing)
    : transport_(&transport), node_(std::move(node)), runner_(&runner), life_(life), timing_(timing) {
  transport_->subscribe(put_subject(node_, "*"),
                        [this](std::string_view subject, std::span<const std::byte> m) { on_put(subject, m); });
  look();
}

NodeStreams::~NodeStreams() {
  transport_->cancel(timer_);
  for (const auto& [id, stream] : streams_) {
    if (stream.running) runner_->cancel(stream.run);
  }
}

void NodeStreams::on_put(std::string_view subject, std::span<const std::byte> message) {
  const std::string gateway(put_sender(subject));
  auto put = decode_put(message);
  if (gateway.empty() || !put.ok()) {
    ++counters_.malformed;
    return;
  }
  if (auto* part = std::get_if<PlacePart>(&*put)) {
    if (gateways_.size() == kMostGateways) gateways_.clear();
    if (gateways_.emplace(gateway, part->attempt.stream >> 32).second) on_new_gateway();
    on_part({gateway, part->attempt.stream}, std::move(*part));
  } else if (const auto* credits = std::get_if<Credits>(&*put)) {
    for (const StreamCredit& credit : credits->streams) on_credit({gateway, credit.attempt.stream}, credit);
  } else if (const auto* cancel = std::get_if<CancelAttempt>(&*put)) {
    const Key key{gateway, cancel->attempt.stream};
    const auto stream = streams_.find(key);
    if (stream == streams_.end()) return;  // it has ended: gateways make sure
    if (stream->second.attempt > cancel->attempt.attempt) {
      ++counters_.fenced;
      return;
    }
    ++counters_.cancelled;
    end(key);
  } else if (on_record_asked) {
    on_record_asked();
  }
}

std::uint32_t NodeStreams::latest(const Key& key) const {
  std::uint32_t attempt = 0;
  if (const auto found = streams_.find(key); found != streams_.end()) attempt = found->second.attempt;
  if (const auto found = ended_.find(key); found != ended_.end()) attempt = std::max(attempt, found->second.attempt);
  return attempt;
}

void NodeStreams::on_part(const Key& key, PlacePart part) {
  const std::uint32_t attempt = part.attempt.attempt;
  if (const auto stream = streams_.find(key); stream != streams_.end() && stream->second.attempt == attempt) {
    ++counters_.doubled;
    credit(key, stream->second, 0, 0);  // the gateway has seen nothing of it, or asks twice
    return;
  }
  if (attempt <= latest(key)) {
    ++counters_.fenced;
    return;
  }
  Assembly& assembly = assemblies_[key];
  if (assembly.attempt != attempt || assembly.parts.size() != part.parts) {
    if (assembly.attempt > attempt) {
      ++counters_.fenced;
      return;
    }
    assembly_bytes_ -= assembly.bytes;
    assembly = {.attempt = attempt,
                .parts = std::vector<std::optional<Bytes>>(part.parts),
                .missing = part.parts,
                .begun = transport_->now()};
  }
  if (std::optional<Bytes>& slot = assembly.parts[part.part]; !slot) {
    assembly.bytes += part.bytes.size();
    assembly_bytes_ += part.bytes.size();
    slot = std::move(part.bytes);
    --assembly.missing;
  } else {
    ++counters_.doubled;
  }
  const bool too_much = assembly.bytes > kMaxPlacement || assembly_bytes_ > kAssembled;
  if (assembly.missing > 0 && !too_much) return;
  Bytes whole;
  if (!too_much) {
    for (const std::optional<Bytes>& bytes : assembly.parts) whole.insert(whole.end(), bytes->begin(), bytes->end());
  }
  assembly_bytes_ -= assembly.bytes;
  assemblies_.erase(key);
  if (too_much) {
    refuse(key, attempt, ErrorKind::busy, "too much is being placed on this node at once");
  } else if (auto placement = decode_placement(whole); !placement.ok()) {
    ++counters_.malformed;
    refuse(key, attempt, ErrorKind::unavailable, "the placement can't be read: " + placement.error().message);
  } else if (draining_) {
    refuse(key, attempt, ErrorKind::unavailable, "the node drains");
  } else {
    place(key, attempt, std::move(*placement));
  }
}

void NodeStreams::refuse(const Key& key, std::uint32_t attempt, ErrorKind kind, const std::string& message) {
  ++counters_.refused;
  if (streams_.contains(key)) end(key);
  Stream& stream = streams_[key];
  stream.attempt = attempt;
  stream.running = false;
  stream.credited = transport_->now();
  stream.allowed = 1;
  stream.pending.emplace_back(AttemptFailed{kind, message});
  send(key, stream);
}

void NodeStreams::place(const Key& key, std::uint32_t attempt, Placement placement) {
  if (streams_.contains(key)) end(key);
  ++counters_.placed;
  Stream& stream = streams_[key];
  stream.attempt = attempt;
  stream.run = next_run_++;
  stream.credited = transport_->now();
  stream.allowed = static_cast<std::uint64_t>(placement.allowed);
  stream.open_choices = static_cast<std::size_t>(
      std::ranges::count_if(placement.choices, [](const PlacedChoice& choice) { return !choice.ended; }));
  runner_->start(stream.run, std::move(placement), [this, key, run = stream.run](std::vector<StreamEvent> events) {
    on_events(key, run, std::move(events));
  });
}

void NodeStreams::on_events(const Key& key, StreamRunner::RunId run, std::vector<StreamEvent> events) {
  const auto found = streams_.find(key);
  if (found == streams_.end() || found->second.run != run) return;
  Stream& stream = found->second;
  for (const StreamEvent& event : events) {
    if (std::holds_alternative<ChoiceEnd>(event)) --stream.open_choices;
    if (std::holds_alternative<AttemptFailed>(event)) stream.open_choices = 0;
  }
  std::ranges::move(events, std::back_inserter(stream.pending));
  if (stream.open_choices == 0) {
    stream.running = false;
    ++counters_.completed;
  }
  send(key, stream);
}

void NodeStreams::on_credit(const Key& key, const StreamCredit& told) {
  const auto found = streams_.find(key);
  if (found == streams_.end() || found->second.attempt < told.attempt.attempt) {
    ++counters_.unknown;
    transport_->publish(say_subject(key.first, node_, told.attempt), encode(Say{UnknownAttempt{}}));
    return;
  }
  Stream& stream = found->second;
  if (stream.attempt != told.attempt.attempt || told.received > stream.received + stream.ring.size()) {
    ++counters_.fenced;
    return;
  }
  credit(key, stream, told.received, told.allowed);
}

void NodeStreams::credit(const Key& key, Stream& stream, std::uint64_t received, std::uint64_t allowed) {
  const Instant now = transport_->now();
  stream.credited = now;
  stream.allowed = std::max(stream.allowed, allowed);
  for (; stream.received < received; ++stream.received) stream.ring.pop_front();
  const std::string subject = say_subject(key.first, node_, {key.second, stream.attempt});
  for (SentFrame& frame : stream.ring) {
    if (now - frame.sent < timing_.resend) continue;
    transport_->publish(subject, frame.message);
    frame.sent = now;
    ++counters_.resent;
  }
  send(key, stream);
  if (!stream.running && stream.pending.empty() && stream.ring.empty()) end(key);
}

bool NodeStreams::is_credited(const Stream& stream) const {
  return transport_->now() - stream.credited < timing_.credit_valid;
}

void NodeStreams::send(const Key& key, Stream& stream) {
  const bool credited = is_credited(stream);
  while (credited && !stream.pending.empty() && stream.received + stream.ring.size() < stream.allowed) {
    Frame frame{.seq = stream.received + stream.ring.size(), .life = life_, .events = {}};
    const auto end =
        stream.pending.begin() + static_cast<std::ptrdiff_t>(std::min(stream.pending.size(), kMaxEventsInFrame));
    std::move(stream.pending.begin(), end, std::back_inserter(frame.events));
    stream.pending.erase(stream.pending.begin(), end);
    stream.ring.push_back({encode(Say{std::move(frame)}), transport_->now()});
    transport_->publish(say_subject(key.first, node_, {key.second, stream.attempt}), stream.ring.back().message);
    ++counters_.frames;
  }
  if (!stream.running) return;
  const bool pause = !credited || !stream.pending.empty();
  if (pause == stream.paused) return;
  stream.paused = pause;
  if (pause) {
    runner_->pause(stream.run);
  } else {
    runner_->resume(stream.run);
  }
}

void NodeStreams::end(const Key& key) {
  const auto found = streams_.find(key);
  if (found->second.running) runner_->cancel(found->second.run);
  ended_[key] = {found->second.attempt, transport_->now()};
  streams_.erase(found);
}

void NodeStreams::look() {
  const Instant now = transport_->now();
  std::vector<Key> orphans;
  for (auto& [key, stream] : streams_) {
    if (now - stream.credited >= timing_.orphaned) {
      orphans.push_back(key);
    } else if (stream.running && !stream.paused && !is_credited(stream)) {
      send(key, stream);  // pauses it
    }
  }
  for (const Key& key : orphans) {
    ++counters_.orphaned;
    end(key);
  }
  std::erase_if(ended_, [&](const auto& entry) { return now - entry.second.when >= timing_.remember_ended; });
  std::erase_if(assemblies_, [&](const auto& entry) {
    if (now - entry.second.begun < kAssemblyTime) return false;
    assembly_bytes_ -= entry.second.bytes;
    return true;
  });
  timer_ = transport_->after(timing_.look, [this] { look(); });
}

}  // namespace millrace
