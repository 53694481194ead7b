// GatewayStreams: the streams of a gateway: where each runs, how far it has come, and where it goes when its node does
// not go on (docs/cluster-protocol.md).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "cluster/messages.h"
#include "cluster/node_table.h"
#include "cluster/node_work.h"
#include "cluster/placement.h"
#include "cluster/slo_watch.h"
#include "cluster/timing.h"
#include "cluster/transport.h"
#include "engine/request.h"

namespace millrace {

using StreamId = std::uint64_t;

/// How a stream ended, and what became of it on its way.
struct StreamDone {
  std::optional<Error> error;      // none: every choice has ended
  std::string node;                // the last one
  std::int64_t cached_tokens = 0;  // of the prompt, on the first node
  std::int32_t migrations = 0;
  bool identical = true;            // all tokens are of one numeric class: an undisturbed node would have given them
  std::vector<NodeWork> work = {};  // of each node that took it, in their order
};

/// What the owner of a stream is told, in order; StreamDone is the last.
using StreamNews = std::variant<TokenCame, EmbeddingCame, ChoiceEnd, StreamDone>;
/// What it answers to it; after `pause` no more than the window comes until resume().
using StreamSink = std::function<Demand(const StreamNews&)>;

/// What a node has said of a stream when it stops saying more: to the end, or until the stream moved or was cancelled.
struct SaidPart {
  StreamId id = 0;
  const Placement& work;  // with all tokens that came
  const std::string& node;
  const std::string& numeric_class;
  const std::vector<std::size_t>& from;  // of each choice: tokens that came from others before
};
/// May not call what tells it.
using SaidListener = std::function<void(const SaidPart&)>;

/// Which node a stream should run on.
struct PickQuery {
  const Placement& placement;
  const ServiceWish& wish;
  const std::string& numeric_class;       // that it must be of; empty: any
  const std::vector<std::string>& avoid;  // that have failed it lately
};
struct PickedNode {
  std::string node = {};
  double ttft = 0.0, tpot = 0.0, usd = 0.0;  // that are predicted: seconds, and what the stream costs
  double ttft_slo = std::numeric_limits<double>::infinity(), tpot_slo = ttft_slo;  // that it was picked for
  bool within_slo = true;                                                          // by the prediction
  std::int64_t cached_tokens = 0;                                // of its prompt, that the node is thought to have
  std::shared_ptr<const std::vector<std::uint64_t>> pages = {};  // for NodeWork
};
/// None: no node may. Only nodes that are usable and have the model may be answered.
using NodePicker = std::function<std::optional<PickedNode>(const PickQuery&, const NodeTable&)>;

/// One thread: the transport's. Sinks are called on it, and may call cancel() and resume(), and submit().
class GatewayStreams {
 public:
  /// Subscribes, and watches the registry. `entropy`: for the upper half of its streams' numbers; another at each
  /// start. `transport` must outlive it; the registry may call back for as long as the transport lives.
  GatewayStreams(Transport& transport, Registry& registry, std::string gateway, NodePicker picker,
                 std::uint32_t entropy, const ClusterTiming& timing = {});
  ~GatewayStreams();
  GatewayStreams(const GatewayStreams&) = delete;
  GatewayStreams& operator=(const GatewayStreams&) = delete;

  /// A stream from its beginning: its choices have no tokens yet. `vocab`: tokens are below; `hidden`: numbers of an
  /// embedding. The sink is called from now on, never from within this call. `avoid`: a node that it should not begin
  /// on. `only`: nodes that may have it; empty: any. Of what those do on_work is not told.
  StreamId submit(Placement work, std::int32_t vocab, StreamSink sink, std::int64_t hidden = 0, ServiceWish wish = {},
                  const std::string& avoid = {}, std::vector<std::string> only = {});
  /// The sink is not called any more. Of a stream that has ended: nothing.
  void cancel(StreamId id);
  void resume(StreamId id);

  /// Is told what each node says of each stream; none: nobody is.
  void listen(SaidListener listener) { listener_ = std::move(listener); }

  /// What StreamDone would say now.
  [[nodiscard]] StreamDone so_far(StreamId id) const;

  /// What becomes of a stream on a node; `beside` is for whoever knows it to set. To be set before the first stream.
  std::function<void(WorkStage, NodeWork&)> on_work = [](WorkStage /*stage*/, NodeWork& /*work*/) {};

  /// nodes() have a beat that has just come: what it says is of now. To be set before the first stream.
  std::function<void()> on_beat = [] {};

  [[nodiscard]] std::size_t count() const { return streams_.size(); }
  [[nodiscard]] const NodeTable& nodes() const { return nodes_; }
  /// Streams that a node has accepted.
  [[nodiscard]] std::int64_t running() const;

  struct Counters {
    std::int64_t submitted = 0, done = 0, failed = 0, cancelled = 0, migrations = 0;
    std::int64_t placements = 0, placed_again = 0, slo_moves = 0;
    std::int64_t tokens = 0;                                            // that came, not of prompts
    std::int64_t fenced = 0, malformed = 0, breaches = 0, doubled = 0;  // messages that were dropped
  };
  [[nodiscard]] const Counters& counters() const { return counters_; }

 private:
  enum class Phase : std::uint8_t { waiting, placing, running };

  /// Why a stream leaves a node: the node has broken something, died, drains, does not know it any more, or is slower
  /// than was asked for.
  enum class Why : std::uint8_t { fault, death, drain, unknown, slow };

  struct Avoided {
    std::string node;
    Duration until{0};
  };

  struct Stream {
    Placement work;
    std::int32_t vocab = 0;
    std::int64_t hidden = 0;
    StreamSink sink;
    ServiceWish wish;
    StreamDone done;
    SloWatch slo;
    int slo_moves = 0;
    std::string failure;    // what a node said last, and
    bool too_busy = false;  // whether it was that
    Phase phase = Phase::waiting;
    bool paused = false;
    std::uint32_t attempt = 0;
    std::string node, numeric_class;
    bool any_token = false;             // in this attempt
    std::vector<float> embedding;       // what came of it in this attempt
    std::optional<std::uint32_t> life;  // of the process that answers it
    std::uint64_t next = 0;             // the frame that comes next
    std::uint64_t allowed = 0;          // frames below may come
    std::map<std::uint64_t, std::vector<StreamEvent>> early;
    Duration placed{0}, asked{0}, heard{0}, credited{0};
    Duration untaken{0};               // since when no node has it
    Duration moved{0}, not_before{0};  // when it left a node last, and until when it waits before the next one
    int failures = 0;                  // moves since the last token
    int refusals = 0;                  // nodes that called it invalid
    std::vector<Avoided> avoid;
    std::vector<std::string> only;  // nodes that may have it; empty: any
    std::vector<std::size_t> from;  // of each choice: tokens that came before this attempt
  };

  void take_beat(std::string_view subject, std::span<const std::byte> message);
  void on_say(std::string_view subject, std::span<const std::byte> message);
  void on_frame(StreamId id, Stream& stream, Frame frame);
  /// False: the stream is gone or has moved.
  bool take(StreamId id, const StreamEvent& event);
  [[nodiscard]] static bool is_lawful(const Stream& stream, const StreamEvent& event);
  /// The best of the nodes that may; what has begun goes on in its numeric class where it can.
  std::optional<PickedNode> pick(Stream& stream);
  void try_place(StreamId id, Stream& stream);
  void place(StreamId id, Stream& stream, const PickedNode& picked);
  void tell_work(const Stream& stream, WorkStage stage, NodeWork& work);
  /// The first of an answer has come from its node.
  void began(Stream& stream);
  void leave(Stream& stream);
  void send_placement(StreamId id, const Stream& stream);
  void move(StreamId id, Stream& stream, Why why);
  void move_all(std::string_view node, Why why);
  void fail_stream(StreamId id, Error error);
  void tell_done(StreamId id);
  void tell_said(StreamId id, const Stream& stream) const;
  void wish_credit(StreamId id);
  void send_credit();
  void look();
  void look_at(StreamId id, Stream& stream);
  void look_at_slo(StreamId id, Stream& stream);
  /// Empty where some node that is ready has room for the stream, or where none is ready.
  [[nodiscard]] std::string no_room_for(const Stream& stream) const;
  Stream* find(StreamId id);

  Transport* transport_;
  std::string gateway_;
  NodePicker picker_;
  SaidListener listener_;
  ClusterTiming timing_;
  NodeTable nodes_;
  StreamId next_id_;
  std::map<StreamId, Stream> streams_;
  std::vector<StreamId> credit_wishes_;
  std::optional<Transport::TimerId> credit_timer_;
  Transport::TimerId timer_ = 0;
  Duration clock_{0};  // stands still while nobody can be heard
  Instant looked_{0};
  Instant connected_{0};
  bool was_connected_ = true;
  Counters counters_;
};

}  // namespace millrace
