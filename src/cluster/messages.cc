#include "cluster/messages.h"

#include <fmt/format.h>

#include <cmath>
#include <initializer_list>
#include <limits>

namespace millrace {

namespace {

constexpr std::int64_t kInt32Max = std::numeric_limits<std::int32_t>::max();
constexpr std::uint64_t kMostFrames = std::numeric_limits<std::int64_t>::max();
constexpr std::uint64_t kMostTokens = std::uint64_t{1} << 48;
constexpr std::uint32_t kMaxParts = 64;

enum class MessageKind : std::uint8_t {
  place = 1,
  credit = 2,
  cancel = 3,
  ask = 4,
  frame = 16,
  unknown = 17,
  beat = 32,
  gate = 33
};
enum class EventKind : std::uint8_t { accepted = 1, token = 2, end = 3, failed = 4, embedding = 5 };

template <typename... Cases>
struct Match : Cases... {
  using Cases::operator()...;
};
template <typename... Cases>
Match(Cases...) -> Match<Cases...>;

WireWriter begin(MessageKind kind) {
  WireWriter out;
  out.u8(kWireVersion);
  out.u8(static_cast<std::uint8_t>(kind));
  return out;
}

void put_kind(WireWriter& out, EventKind kind) {
  out.u8(static_cast<std::uint8_t>(kind));
}

MessageKind read_kind(WireReader& in) {
  const std::uint8_t version = in.u8(), kind = in.u8();
  if (in.ok() && version != kWireVersion) in.refuse(fmt::format("version {}, only {} is known", version, kWireVersion));
  return static_cast<MessageKind>(kind);
}

void put_attempt(WireWriter& out, const Attempt& attempt) {
  out.u64(attempt.stream);
  out.u32(attempt.attempt);
}

Attempt read_attempt(WireReader& in) {
  const std::uint64_t stream = in.u64();
  return {stream, in.u32()};
}

void put_logprobs(WireWriter& out, const TokenLogprobs& logprobs) {
  out.f32(logprobs.logprob);
  out.varint(logprobs.top.size());
  for (const auto& [token, logprob] : logprobs.top) {
    out.varint(static_cast<std::uint32_t>(token));
    out.f32(logprob);
  }
}

float read_logprob(WireReader& in) {
  const float value = in.f32();
  if (std::isnan(value) || value > 0.0f) in.refuse("a log-probability is above 0 or no number");
  return value;
}

TokenLogprobs read_logprobs(WireReader& in) {
  TokenLogprobs logprobs;
  logprobs.logprob = read_logprob(in);
  logprobs.top.resize(in.count(kMaxTopLogprobs, 5, "likely tokens"));
  for (auto& [token, logprob] : logprobs.top) {
    token = static_cast<std::int32_t>(in.varint(kInt32Max, "a likely token"));
    logprob = read_logprob(in);
  }
  return logprobs;
}

std::int32_t read_int32(WireReader& in, std::string_view what) {
  return static_cast<std::int32_t>(in.varint(kInt32Max, what));
}

void put_counts(WireWriter& out, std::initializer_list<std::int64_t> counts) {
  for (const std::int64_t count : counts) out.varint(static_cast<std::uint64_t>(count));
}

std::int64_t read_count(WireReader& in, std::string_view what) {
  return static_cast<std::int64_t>(in.varint(kMostTokens, what));
}

void put_event(WireWriter& out, const StreamEvent& event) {
  std::visit(Match{[&](const Accepted&) { put_kind(out, EventKind::accepted); },
                   [&](const TokenCame& came) {
                     put_kind(out, EventKind::token);
                     out.varint(static_cast<std::uint32_t>(came.choice));
                     out.varint(static_cast<std::uint32_t>(came.token));
                     out.u8(static_cast<std::uint8_t>((came.of_prompt ? 1 : 0) | (came.logprobs ? 2 : 0)));
                     if (came.logprobs) put_logprobs(out, *came.logprobs);
                   },
                   [&](const ChoiceEnd& end) {
                     put_kind(out, EventKind::end);
                     out.varint(static_cast<std::uint32_t>(end.choice));
                     out.u8(end.reason == FinishReason::stop ? 0 : 1);
                     out.varint(static_cast<std::uint64_t>(end.cached_tokens));
                   },
                   [&](const AttemptFailed& failed) {
                     put_kind(out, EventKind::failed);
                     out.u8(static_cast<std::uint8_t>(failed.kind));
                     out.text(std::string_view(failed.message).substr(0, kMaxErrorText));
                   },
                   [&](const EmbeddingCame& came) {
                     put_kind(out, EventKind::embedding);
                     out.varint(came.values.size());
                     for (const float value : came.values) out.f32(value);
                   }},
             event);
}

StreamEvent read_event(WireReader& in) {
  switch (const std::uint8_t kind = in.u8(); static_cast<EventKind>(kind)) {
    case EventKind::accepted:
      return Accepted{};
    case EventKind::token: {
      TokenCame came{.choice = read_int32(in, "a choice"), .token = read_int32(in, "a token")};
      const std::uint8_t flags = in.u8();
      if (flags > 3) in.refuse("a token has flags that are not known");
      came.of_prompt = (flags & 1) != 0;
      if ((flags & 2) != 0) came.logprobs = read_logprobs(in);
      return came;
    }
    case EventKind::end: {
      const std::int32_t choice = read_int32(in, "a choice");
      const std::uint8_t reason = in.u8();
      if (reason > 1) in.refuse("a choice ended for no known reason");
      return ChoiceEnd{choice, reason == 0 ? FinishReason::stop : FinishReason::length,
                       read_count(in, "cached tokens")};
    }
    case EventKind::failed: {
      const std::uint8_t error = in.u8();
      if (error > static_cast<std::uint8_t>(ErrorKind::unavailable)) in.refuse("an error is of no known kind");
      return AttemptFailed{static_cast<ErrorKind>(error), in.text(kMaxErrorText, "an error")};
    }
    case EventKind::embedding: {
      EmbeddingCame came;
      came.values.resize(in.count(kMaxEmbeddingPart, sizeof(float), "numbers of an embedding"));
      for (float& value : came.values) {
        value = in.f32();
        if (!std::isfinite(value)) in.refuse("an embedding has what is no finite number");
      }
      return came;
    }
    default:
      in.refuse(fmt::format("events of kind {} are not known", kind));
      return Accepted{};
  }
}

}  // namespace

Bytes encode(const Put& put) {
  return std::visit(Match{[](const PlacePart& place) {
                            WireWriter out = begin(MessageKind::place);
                            put_attempt(out, place.attempt);
                            out.varint(place.part);
                            out.varint(place.parts);
                            out.blob(place.bytes);
                            return std::move(out).take();
                          },
                          [](const Credits& credits) {
                            WireWriter out = begin(MessageKind::credit);
                            out.varint(credits.streams.size());
                            for (const StreamCredit& credit : credits.streams) {
                              put_attempt(out, credit.attempt);
                              out.varint(credit.received);
                              out.varint(credit.allowed);
                            }
                            return std::move(out).take();
                          },
                          [](const CancelAttempt& cancel) {
                            WireWriter out = begin(MessageKind::cancel);
                            put_attempt(out, cancel.attempt);
                            return std::move(out).take();
                          },
                          [](const AskRecord&) { return begin(MessageKind::ask).take(); }},
                    put);
}

Bytes encode(const Say& say) {
  return std::visit(Match{[](const Frame& frame) {
                            WireWriter out = begin(MessageKind::frame);
                            out.varint(frame.seq);
                            out.u32(frame.life);
                            out.varint(frame.events.size());
                            for (const StreamEvent& event : frame.events) put_event(out, event);
                            return std::move(out).take();
                          },
                          [](const UnknownAttempt&) { return begin(MessageKind::unknown).take(); }},
                    say);
}

Bytes encode(const Beat& beat) {
  WireWriter out = begin(MessageKind::beat);
  out.u64(beat.incarnation);
  out.varint(beat.number);
  out.varint(beat.draining ? 1 : 0);
  put_counts(out, {beat.running, beat.waiting, beat.waiting_tokens, beat.kv_tokens, beat.kv_free, beat.generated});
  return std::move(out).take();
}

Bytes encode(const GateBeat& beat) {
  WireWriter out = begin(MessageKind::gate);
  out.u32(beat.life);
  out.varint(beat.number);
  out.varint(beat.draining ? 1 : 0);
  put_counts(out, {beat.running, beat.waiting, beat.generated, beat.connections, beat.ready_nodes});
  return std::move(out).take();
}

Result<Put> decode_put(std::span<const std::byte> message) {
  WireReader in(message);
  Put put;
  switch (read_kind(in)) {
    case MessageKind::place: {
      PlacePart place{.attempt = read_attempt(in)};
      place.part = static_cast<std::uint32_t>(in.varint(kMaxParts - 1, "a part"));
      place.parts = static_cast<std::uint32_t>(in.varint(kMaxParts, "parts"));
      if (place.part >= place.parts) in.refuse(fmt::format("part {} of {}", place.part, place.parts));
      const std::span<const std::byte> bytes = in.blob(kMaxPartBytes, "a part");
      place.bytes.assign(bytes.begin(), bytes.end());
      put = std::move(place);
      break;
    }
    case MessageKind::credit: {
      constexpr std::size_t kLeastBytes = 14;
      Credits credits;
      credits.streams.resize(in.count(kMaxCredits, kLeastBytes, "credits"));
      for (StreamCredit& credit : credits.streams) {
        credit.attempt = read_attempt(in);
        credit.received = in.varint(kMostFrames, "received frames");
        credit.allowed = in.varint(kMostFrames, "allowed frames");
      }
      put = std::move(credits);
      break;
    }
    case MessageKind::cancel:
      put = CancelAttempt{read_attempt(in)};
      break;
    case MessageKind::ask:
      put = AskRecord{};
      break;
    default:
      in.refuse("this kind of message is not for nodes");
  }
  MILLRACE_CHECK_OK(in.status());
  return put;
}

Result<Say> decode_say(std::span<const std::byte> message) {
  WireReader in(message);
  Say say;
  switch (read_kind(in)) {
    case MessageKind::frame: {
      Frame frame{.seq = in.varint(kMostFrames, "a frame's number"), .life = in.u32(), .events = {}};
      const std::size_t events = in.count(kMaxEventsInFrame, 1, "events");
      for (std::size_t i = 0; i < events && in.ok(); ++i) frame.events.push_back(read_event(in));
      say = std::move(frame);
      break;
    }
    case MessageKind::unknown:
      say = UnknownAttempt{};
      break;
    default:
      in.refuse("this kind of message is not for gateways");
  }
  MILLRACE_CHECK_OK(in.status());
  return say;
}

Result<Beat> decode_beat(std::span<const std::byte> message) {
  WireReader in(message);
  if (read_kind(in) != MessageKind::beat) in.refuse("this is no beat");
  Beat beat{.incarnation = in.u64(), .number = in.varint(kMostFrames, "the number of the beat")};
  beat.draining = in.flag("the sign of draining");
  beat.running = read_count(in, "running sequences");
  beat.waiting = read_count(in, "waiting sequences");
  beat.waiting_tokens = read_count(in, "waiting tokens");
  beat.kv_tokens = read_count(in, "tokens of KV memory");
  beat.kv_free = read_count(in, "free tokens of KV memory");
  beat.generated = read_count(in, "generated tokens");
  MILLRACE_CHECK_OK(in.status());
  return beat;
}

Result<GateBeat> decode_gate_beat(std::span<const std::byte> message) {
  WireReader in(message);
  if (read_kind(in) != MessageKind::gate) in.refuse("this is no beat of a gateway");
  GateBeat beat{.life = in.u32(), .number = in.varint(kMostFrames, "the number of the beat")};
  beat.draining = in.flag("the sign of draining");
  beat.running = read_count(in, "running streams");
  beat.waiting = read_count(in, "waiting streams");
  beat.generated = read_count(in, "generated tokens");
  beat.connections = read_count(in, "connections");
  beat.ready_nodes = read_count(in, "ready nodes");
  MILLRACE_CHECK_OK(in.status());
  return beat;
}

}  // namespace millrace
