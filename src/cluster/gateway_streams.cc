#include "cluster/gateway_streams.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace millrace {

namespace {

constexpr Duration kBetweenMoves = std::chrono::seconds(1);  // two of which came sooner than this after each other

}  // namespace

GatewayStreams::GatewayStreams(Transport& transport, Registry& registry, std::string gateway, NodePicker picker,
                               std::uint32_t entropy, const ClusterTiming& timing)
    : transport_(&transport),
      gateway_(std::move(gateway)),
      picker_(std::move(picker)),
      timing_(timing),
      nodes_(timing),
      next_id_(StreamId{entropy} << 32 | 1),
      looked_(transport.now()) {
  using Message = std::span<const std::byte>;
  transport_->subscribe(fmt::format("mr.say.{}.>", gateway_),
                        [this](std::string_view subject, Message message) { on_say(subject, message); });
  transport_->subscribe(beat_subject("*"),
                        [this](std::string_view subject, Message message) { take_beat(subject, message); });
  registry.watch([this](const std::string& node, const NodeRecord* record, std::uint64_t incarnation) {
    if (record != nullptr) {
      nodes_.set_record(*record, incarnation);
    } else {
      nodes_.remove(node);
    }
  });
  registry.watch_terms([this](const std::string& node, const TermsNews& news) {
    nodes_.set_terms(node, news);
    const auto* quarantine = std::get_if<Quarantine>(&news);
    if (quarantine != nullptr && !quarantine->reason.empty()) move_all(node, Why::drain);
  });
  timer_ = transport_->after(timing_.look, [this] { look(); });
}

GatewayStreams::~GatewayStreams() {
  transport_->cancel(timer_);
  if (credit_timer_) transport_->cancel(*credit_timer_);
}

GatewayStreams::Stream* GatewayStreams::find(StreamId id) {
  const auto found = streams_.find(id);
  return found == streams_.end() ? nullptr : &found->second;
}

StreamId GatewayStreams::submit(Placement work, std::int32_t vocab, StreamSink sink, std::int64_t hidden,
                                ServiceWish wish, const std::string& avoid, std::vector<std::string> only) {
  const StreamId id = next_id_++;
  ++counters_.submitted;
  Stream& stream = streams_[id];
  stream.work = std::move(work);
  stream.vocab = vocab;
  stream.hidden = hidden;
  stream.sink = std::move(sink);
  stream.wish = std::move(wish);
  if (!avoid.empty()) stream.avoid.push_back({avoid, clock_ + timing_.avoid});
  stream.only = std::move(only);
  stream.untaken = clock_;
  try_place(id, stream);
  return id;
}

void GatewayStreams::cancel(StreamId id) {
  Stream* stream = find(id);
  if (stream == nullptr) return;
  ++counters_.cancelled;
  if (stream->phase != Phase::waiting) {
    transport_->publish(put_subject(stream->node, gateway_), encode(Put{CancelAttempt{{id, stream->attempt}}}));
    leave(*stream);
  }
  tell_said(id, *stream);
  streams_.erase(id);
}

StreamDone GatewayStreams::so_far(StreamId id) const {
  const auto stream = streams_.find(id);
  if (stream == streams_.end()) return {};
  StreamDone done = stream->second.done;
  done.node = stream->second.node;
  return done;
}

std::int64_t GatewayStreams::running() const {
  return std::ranges::count_if(streams_, [](const auto& entry) { return entry.second.phase == Phase::running; });
}

void GatewayStreams::resume(StreamId id) {
  Stream* stream = find(id);
  if (stream == nullptr || !std::exchange(stream->paused, false)) return;
  stream->heard = clock_;
  stream->slo.held(transport_->now());
  wish_credit(id);
}

void GatewayStreams::take_beat(std::string_view subject, std::span<const std::byte> message) {
  const std::string_view node = beat_sender(subject);
  const auto beat = decode_beat(message);
  if (node.empty() || !beat.ok()) {
    ++counters_.malformed;
    return;
  }
  if (!nodes_.beat(node, *beat, clock_)) {
    ++counters_.fenced;
    return;
  }
  on_beat();
  if (nodes_.find(node)->record.incarnation != beat->incarnation) {
    transport_->publish(put_subject(node, gateway_), encode(Put{AskRecord{}}));
  }
  if (beat->draining) {
    move_all(node, Why::drain);
    return;
  }
  for (auto& [id, stream] : streams_) {
    if (stream.phase == Phase::waiting) try_place(id, stream);
  }
}

void GatewayStreams::on_say(std::string_view subject, std::span<const std::byte> message) {
  const std::optional<SaySubject> from = parse_say(subject);
  if (!from) {
    ++counters_.malformed;
    return;
  }
  const StreamId id = from->attempt.stream;
  Stream* stream = find(id);
  if (stream == nullptr || stream->phase == Phase::waiting || stream->attempt != from->attempt.attempt ||
      stream->node != from->node) {
    ++counters_.fenced;
    // Whoever goes on with what nobody wants any more is told so.
    const bool own = id >> 32 == next_id_ >> 32;  // and not of another gateway of this name, which may still live
    if (own && (stream == nullptr || from->attempt.attempt <= stream->attempt)) {
      transport_->publish(put_subject(from->node, gateway_), encode(Put{CancelAttempt{from->attempt}}));
    }
    return;
  }
  auto say = decode_say(message);
  if (!say.ok()) {
    ++counters_.malformed;
    move(id, *stream, Why::fault);
    return;
  }
  nodes_.heard(from->node, clock_);
  if (std::holds_alternative<UnknownAttempt>(*say)) {
    if (stream->phase == Phase::running) move(id, *stream, Why::unknown);
  } else {
    on_frame(id, *stream, std::move(std::get<Frame>(*say)));
  }
}

void GatewayStreams::on_frame(StreamId id, Stream& stream, Frame frame) {
  // A node that has restarted and got the placement once more answers the same attempt, and cuts it into other frames.
  if (stream.life.value_or(frame.life) != frame.life) {
    ++counters_.fenced;
    move(id, stream, Why::unknown);
    return;
  }
  stream.life = frame.life;
  if (frame.seq < stream.next || stream.early.contains(frame.seq)) {
    ++counters_.doubled;
    return;
  }
  if (frame.seq >= stream.allowed) {
    ++counters_.breaches;
    move(id, stream, Why::fault);
    return;
  }
  stream.early.emplace(frame.seq, std::move(frame.events));
  const std::uint32_t attempt = stream.attempt;
  for (;;) {
    Stream* now = find(id);
    if (now == nullptr || now->attempt != attempt || now->phase == Phase::waiting) return;
    const auto next = now->early.begin();
    if (next == now->early.end() || next->first != now->next) break;
    const std::vector<StreamEvent> events = std::move(next->second);
    now->early.erase(next);
    ++now->next;
    now->heard = clock_;
    for (const StreamEvent& event : events) {
      if (!take(id, event)) return;
    }
  }
  Stream& now = *find(id);
  if (!now.paused && now.allowed - now.next <= timing_.window / 2) wish_credit(id);
}

bool GatewayStreams::is_lawful(const Stream& stream, const StreamEvent& event) {
  const auto choice_of = [&](std::int32_t index) -> const PlacedChoice* {
    if (index < 0 || static_cast<std::size_t>(index) >= stream.work.choices.size()) return nullptr;
    const PlacedChoice& choice = stream.work.choices[static_cast<std::size_t>(index)];
    return choice.ended ? nullptr : &choice;
  };
  const bool accepted = stream.phase == Phase::running, embeds = stream.work.task != Task::generate;
  if (std::holds_alternative<Accepted>(event)) return !accepted;
  if (const auto* came = std::get_if<TokenCame>(&event)) {
    const PlacedChoice* choice = choice_of(came->choice);
    if (!accepted || choice == nullptr || embeds || came->token >= stream.vocab) return false;
    if (came->logprobs.has_value() && stream.work.logprobs < 0 && !came->of_prompt) return false;
    if (!came->of_prompt) return static_cast<std::int64_t>(choice->tokens.size()) < stream.work.max_new_tokens;
    const auto told = static_cast<std::size_t>(choice->prompt_reported);
    return stream.work.prompt_logprobs && choice->tokens.empty() && told < stream.work.prompt.size() &&
           stream.work.prompt[told] == came->token;
  }
  const auto numbers = static_cast<std::int64_t>(stream.embedding.size());
  if (const auto* came = std::get_if<EmbeddingCame>(&event)) {
    return accepted && embeds && !came->values.empty() &&
           numbers + static_cast<std::int64_t>(came->values.size()) <= stream.hidden;
  }
  if (const auto* end = std::get_if<ChoiceEnd>(&event)) {
    return accepted && choice_of(end->choice) != nullptr && (!embeds || numbers == stream.hidden);
  }
  return true;
}

bool GatewayStreams::take(StreamId id, const StreamEvent& event) {
  Stream& stream = *find(id);
  const std::uint32_t attempt = stream.attempt;
  if (!is_lawful(stream, event)) {
    ++counters_.breaches;
    move(id, stream, Why::fault);
    return false;
  }
  Demand demand = Demand::more;
  if (std::holds_alternative<Accepted>(event)) {
    stream.phase = Phase::running;
    return true;
  }
  if (const auto* failed = std::get_if<AttemptFailed>(&event)) {
    // What one node calls invalid another may not, such as a prompt that is too long for its memory.
    stream.failure = failed->message;
    stream.too_busy = failed->kind == ErrorKind::busy;
    const bool invalid = failed->kind == ErrorKind::invalid;
    if (invalid) ++stream.refusals;
    move(id, stream, Why::fault);
    const Stream* now = find(id);
    if (invalid && now != nullptr && (now->refusals > 1 || now->phase == Phase::waiting)) {
      fail_stream(id, {failed->message, ErrorKind::invalid});
    }
    return false;
  }
  if (const auto* came = std::get_if<TokenCame>(&event)) {
    PlacedChoice& choice = stream.work.choices[static_cast<std::size_t>(came->choice)];
    if (came->of_prompt) {
      ++choice.prompt_reported;
    } else {
      choice.tokens.push_back(came->token);
      ++counters_.tokens;
      NodeWork& work = stream.done.work.back();
      work.last = transport_->now();
      stream.slo.token(work.last);
      if (work.tokens++ == 0) began(stream);
    }
    stream.any_token = true;
    stream.failures = 0;
    demand = stream.sink(*came);
  } else if (const auto* part = std::get_if<EmbeddingCame>(&event)) {
    if (!std::exchange(stream.any_token, true)) {
      NodeWork& work = stream.done.work.back();
      work.last = transport_->now();
      stream.slo.token(work.last);
      began(stream);
    }
    stream.embedding.insert(stream.embedding.end(), part->values.begin(), part->values.end());
  } else if (const auto* end = std::get_if<ChoiceEnd>(&event)) {
    if (stream.work.task != Task::generate) (void)stream.sink(EmbeddingCame{std::move(stream.embedding)});
    if (find(id) == nullptr) return false;
    stream.work.choices[static_cast<std::size_t>(end->choice)].ended = true;
    NodeWork& work = stream.done.work.back();
    work.cached_tokens = std::clamp(end->cached_tokens, work.cached_tokens, work.prompt_tokens);
    if (stream.done.migrations == 0) {
      stream.done.cached_tokens = std::max(stream.done.cached_tokens, end->cached_tokens);
    }
    demand = stream.sink(*end);
  }
  Stream* after = find(id);
  if (after == nullptr || after->attempt != attempt) return false;
  if (demand == Demand::pause) after->paused = true;
  if (!std::ranges::all_of(after->work.choices, &PlacedChoice::ended)) return true;
  transport_->publish(put_subject(after->node, gateway_), encode(Put{CancelAttempt{{id, attempt}}}));
  tell_done(id);
  return false;
}

void GatewayStreams::tell_said(StreamId id, const Stream& stream) const {
  if (!listener_ || stream.phase != Phase::running) return;
  listener_({id, stream.work, stream.node, stream.numeric_class, stream.from});
}

void GatewayStreams::tell_done(StreamId id) {
  tell_said(id, *find(id));
  auto stream = streams_.extract(id);
  stream.mapped().done.node = stream.mapped().node;
  if (stream.mapped().phase != Phase::waiting) leave(stream.mapped());
  ++(stream.mapped().done.error ? counters_.failed : counters_.done);
  (void)stream.mapped().sink(stream.mapped().done);
}

void GatewayStreams::fail_stream(StreamId id, Error error) {
  Stream& stream = *find(id);
  if (stream.phase != Phase::waiting) {
    transport_->publish(put_subject(stream.node, gateway_), encode(Put{CancelAttempt{{id, stream.attempt}}}));
  }
  stream.done.error = std::move(error);
  tell_done(id);
}

std::optional<PickedNode> GatewayStreams::pick(Stream& stream) {
  std::erase_if(stream.avoid, [&](const Avoided& avoided) { return avoided.until <= clock_; });
  std::vector<std::string> avoid;
  for (const Avoided& avoided : stream.avoid) avoid.push_back(avoided.node);
  if (!stream.only.empty()) {
    for (const auto& [name, state] : nodes_.nodes()) {
      if (std::ranges::find(stream.only, name) == stream.only.end()) avoid.push_back(name);
    }
  }
  std::optional<PickedNode> picked;
  if (std::ranges::any_of(stream.work.choices, &PlacedChoice::has_begun)) {
    picked = picker_({stream.work, stream.wish, stream.numeric_class, avoid}, nodes_);
  }
  if (!picked) picked = picker_({stream.work, stream.wish, {}, avoid}, nodes_);
  return picked;
}

void GatewayStreams::try_place(StreamId id, Stream& stream) {
  if (clock_ < stream.not_before) return;
  if (const auto picked = pick(stream)) place(id, stream, *picked);
}

void GatewayStreams::place(StreamId id, Stream& stream, const PickedNode& picked) {
  const NodeState* state = nodes_.find(picked.node);
  const NodeModel* model = state == nullptr ? nullptr : NodeTable::model(*state, stream.work.model);
  if (model == nullptr) {
    stream.avoid.push_back({picked.node, clock_ + timing_.avoid});
    return;
  }
  const bool begun = std::ranges::any_of(stream.work.choices, &PlacedChoice::has_begun);
  const bool changes = !stream.numeric_class.empty() && model->numeric_class != stream.numeric_class;
  if (begun && changes) stream.done.identical = false;
  stream.numeric_class = model->numeric_class;
  stream.node = picked.node;
  ++stream.attempt;
  stream.phase = Phase::placing;
  stream.any_token = false;
  stream.from.clear();
  for (const PlacedChoice& choice : stream.work.choices) stream.from.push_back(choice.tokens.size());
  stream.embedding.clear();
  stream.life.reset();
  stream.next = 0;
  stream.early.clear();
  stream.allowed = stream.paused ? 1 : timing_.window;
  stream.placed = stream.asked = stream.heard = stream.credited = clock_;
  NodeWork work{.node = picked.node,
                .recipe = model->recipe,
                .expected_cached = picked.cached_tokens,
                .choices = 0,
                .pages = picked.pages,
                .ttft = picked.ttft,
                .tpot = picked.tpot,
                .ttft_slo = picked.ttft_slo,
                .tpot_slo = picked.tpot_slo,
                .within_slo = picked.within_slo,
                .placed = transport_->now()};
  work.prompt_tokens = static_cast<std::int64_t>(stream.work.prompt.size());
  for (const PlacedChoice& choice : stream.work.choices) {
    work.choices += choice.ended ? 0 : 1;
    if (!choice.ended) work.prompt_tokens += static_cast<std::int64_t>(choice.tokens.size());
  }
  stream.slo.placed(picked.ttft_slo, picked.tpot_slo, work.choices, work.placed);
  tell_work(stream, WorkStage::placed, work);
  stream.done.work.push_back(std::move(work));
  ++counters_.placements;
  send_placement(id, stream);
}

void GatewayStreams::tell_work(const Stream& stream, WorkStage stage, NodeWork& work) {
  if (stream.only.empty()) on_work(stage, work);
}

void GatewayStreams::began(Stream& stream) {
  NodeWork& work = stream.done.work.back();
  work.first = work.last;
  tell_work(stream, WorkStage::began, work);
  nodes_.served(stream.node);
}

void GatewayStreams::leave(Stream& stream) {
  tell_work(stream, WorkStage::left, stream.done.work.back());
  // Of one that was never taken there is nothing to charge.
  if (stream.phase == Phase::placing) stream.done.work.pop_back();
}

void GatewayStreams::send_placement(StreamId id, const Stream& stream) {
  Placement placement = stream.work;
  placement.numeric_class = stream.numeric_class;
  placement.allowed = static_cast<std::int64_t>(stream.allowed);
  const Bytes bytes = encode(placement);
  const std::size_t parts = (bytes.size() + kMaxPartBytes - 1) / kMaxPartBytes;
  for (std::size_t part = 0; part < parts; ++part) {
    const auto piece = std::span(bytes)
                           .subspan(part * kMaxPartBytes)
                           .first(std::min(kMaxPartBytes, bytes.size() - part * kMaxPartBytes));
    transport_->publish(put_subject(stream.node, gateway_),
                        encode(Put{PlacePart{.attempt = {id, stream.attempt},
                                             .part = static_cast<std::uint32_t>(part),
                                             .parts = static_cast<std::uint32_t>(parts),
                                             .bytes = Bytes(piece.begin(), piece.end())}}));
  }
}

void GatewayStreams::move(StreamId id, Stream& stream, Why why) {
  transport_->publish(put_subject(stream.node, gateway_), encode(Put{CancelAttempt{{id, stream.attempt}}}));
  if (why == Why::fault || why == Why::death || why == Why::slow) {
    stream.avoid.push_back({stream.node, clock_ + timing_.avoid});
  }
  if (why == Why::fault) nodes_.failed(stream.node, clock_);
  tell_said(id, stream);
  leave(stream);
  if (std::exchange(stream.phase, Phase::waiting) == Phase::running) {
    ++stream.done.migrations;
    ++counters_.migrations;
    stream.untaken = clock_;
    if (why != Why::drain && why != Why::slow && ++stream.failures > timing_.failures) {
      // Perhaps it is what kills them.
      fail_stream(id,
                  {fmt::format("{} nodes, one after the other, have not gone on with this answer{}{}", stream.failures,
                               stream.failure.empty() ? "" : "; the last one said: ", stream.failure),
                   ErrorKind::unavailable});
      return;
    }
  }
  // Nobody may make a gateway place a stream as fast as messages travel.
  if (clock_ - stream.moved < kBetweenMoves) stream.not_before = clock_ + kBetweenMoves;
  stream.moved = clock_;
  if (why != Why::slow) try_place(id, stream);  // that one has a node already
}

void GatewayStreams::move_all(std::string_view node, Why why) {
  std::vector<StreamId> ids;
  for (const auto& [id, stream] : streams_) {
    if (stream.phase != Phase::waiting && stream.node == node) ids.push_back(id);
  }
  for (const StreamId id : ids) {
    if (Stream* stream = find(id)) move(id, *stream, why);
  }
}

void GatewayStreams::wish_credit(StreamId id) {
  credit_wishes_.push_back(id);
  if (credit_timer_) return;
  credit_timer_ = transport_->after(Duration{0}, [this] {
    credit_timer_.reset();
    send_credit();
  });
}

void GatewayStreams::send_credit() {
  std::map<std::string, Credits> of_node;
  const auto send = [&](const std::string& node, Credits& credits) {
    transport_->publish(put_subject(node, gateway_), encode(Put{std::exchange(credits, {})}));
  };
  for (const StreamId id : std::exchange(credit_wishes_, {})) {
    Stream* stream = find(id);
    if (stream == nullptr || stream->phase != Phase::running) continue;
    if (!stream->paused) stream->allowed = std::max(stream->allowed, stream->next + timing_.window);
    stream->credited = clock_;
    Credits& credits = of_node[stream->node];
    credits.streams.push_back({{id, stream->attempt}, stream->next, stream->allowed});
    if (credits.streams.size() == kMaxCredits) send(stream->node, credits);
  }
  for (auto& [node, credits] : of_node) {
    if (!credits.streams.empty()) send(node, credits);
  }
}

}  // namespace millrace
