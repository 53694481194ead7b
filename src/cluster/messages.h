// What gateways and nodes say to each other, message by message (docs/cluster-protocol.md).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "cluster/subjects.h"
#include "cluster/wire.h"
#include "core/result.h"
#include "engine/request.h"
#include "runtime/sampler.h"

namespace millrace {

// From a gateway to a node.

/// Part `part` of `parts` of an encoded Placement.
struct PlacePart {
  Attempt attempt;
  std::uint32_t part = 0, parts = 1;
  Bytes bytes = {};
};

struct StreamCredit {
  Attempt attempt;
  std::uint64_t received = 0;  // frames below have arrived
  std::uint64_t allowed = 0;   // frames below may be sent
};

struct Credits {
  std::vector<StreamCredit> streams;
};

struct CancelAttempt {
  Attempt attempt;
};

/// The gateway has no record of the process that beats.
struct AskRecord {};

using Put = std::variant<PlacePart, Credits, CancelAttempt, AskRecord>;

constexpr std::size_t kMaxPartBytes = 400 << 10;
constexpr std::size_t kMaxCredits = 4096;  // in a message

// From a node to a gateway.

/// It was taken: it waits or runs.
struct Accepted {};

struct TokenCame {
  std::int32_t choice = 0;
  std::int32_t token = 0;
  bool of_prompt = false;
  std::optional<TokenLogprobs> logprobs = {};
};

struct ChoiceEnd {
  std::int32_t choice = 0;
  FinishReason reason = FinishReason::stop;  // stop or length
  std::int64_t cached_tokens = 0;            // of the prompt, that this node had already; with the last end
};

/// The attempt has ended.
struct AttemptFailed {
  ErrorKind kind = ErrorKind::unavailable;
  std::string message;
};

/// The next numbers of an embedding; to the owner of a stream, all of them. An attempt that ends before its choice does
/// has said nothing.
struct EmbeddingCame {
  std::vector<float> values;
};

using StreamEvent = std::variant<Accepted, TokenCame, ChoiceEnd, AttemptFailed, EmbeddingCame>;

struct Frame {
  std::uint64_t seq = 0;
  std::uint32_t life = 0;  // of the node's process: one that restarts has another
  std::vector<StreamEvent> events;
};

/// Credit came for an attempt that is not here.
struct UnknownAttempt {};

using Say = std::variant<Frame, UnknownAttempt>;

constexpr std::size_t kMaxEventsInFrame = 256;  // with all log-probabilities or numbers less than a message may have
constexpr std::size_t kMaxEmbeddingPart = 256;  // numbers in an event
constexpr std::size_t kMaxErrorText = 1024;
constexpr std::size_t kMaxTopLogprobs = 128;

struct Beat {
  std::uint64_t incarnation = 0;
  std::uint64_t number = 0;
  bool draining = false;
  std::int64_t running = 0, waiting = 0;  // sequences
  std::int64_t waiting_tokens = 0;        // of prompts, not computed yet
  std::int64_t kv_tokens = 0, kv_free = 0;
  std::int64_t generated = 0;  // tokens, since it began
};

/// A gateway's, for people who look.
struct GateBeat {
  std::uint32_t life = 0;  // of its process: another at each start
  std::uint64_t number = 0;
  bool draining = false;
  std::int64_t running = 0, waiting = 0;  // streams
  std::int64_t generated = 0;             // tokens that came, since it began
  std::int64_t connections = 0;           // of HTTP
  std::int64_t ready_nodes = 0;           // as it sees them
};

Bytes encode(const Put& put);
Bytes encode(const Say& say);
Bytes encode(const Beat& beat);
Bytes encode(const GateBeat& beat);

/// Error: one line that says what is wrong; nothing of the message may be used then.
Result<Put> decode_put(std::span<const std::byte> message);
Result<Say> decode_say(std::span<const std::byte> message);
Result<Beat> decode_beat(std::span<const std::byte> message);
Result<GateBeat> decode_gate_beat(std::span<const std::byte> message);

}  // namespace millrace
