// NodeStreams: the streams that a node serves, for all gateways (docs/cluster-protocol.md).
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cluster/messages.h"
#include "cluster/placement.h"
#include "cluster/timing.h"
#include "cluster/transport.h"

namespace millrace {

/// What runs streams on a node: the engine, or a simulated one. One thread: the transport's.
class StreamRunner {
 public:
  using RunId = std::uint64_t;
  using Sink = std::function<void(std::vector<StreamEvent>)>;

  StreamRunner() = default;
  StreamRunner(const StreamRunner&) = delete;
  StreamRunner& operator=(const StreamRunner&) = delete;
  virtual ~StreamRunner() = default;

  /// Begins, or goes on where the placement's choices stand. The sink is called later, never from within: an Accepted
  /// first, then tokens and the ends of all choices; or at any place an AttemptFailed, and nothing behind it.
  virtual void start(RunId run, Placement placement, Sink sink) = 0;
  /// It takes no part in steps until resumed. What is under way may still come.
  virtual void pause(RunId run) = 0;
  virtual void resume(RunId run) = 0;
  /// Nothing of it comes any more, and all that it held is given back.
  virtual void cancel(RunId run) = 0;
};

class NodeStreams {
 public:
  /// Subscribes. `life`: drawn by lot at each start. `transport` and `runner` must outlive it.
  NodeStreams(Transport& transport, std::string node, StreamRunner& runner, std::uint32_t life,
              const ClusterTiming& timing = {});
  ~NodeStreams();
  NodeStreams(const NodeStreams&) = delete;
  NodeStreams& operator=(const NodeStreams&) = delete;

  /// Called when a gateway asks for the node's record.
  std::function<void()> on_record_asked;

  /// New placements are refused from now on.
  void drain() { draining_ = true; }

  /// A gateway, or a new process of one, has placed its first stream: it may not have heard what was said before.
  std::function<void()> on_new_gateway = [] {};

  [[nodiscard]] std::uint32_t life() const { return life_; }
  [[nodiscard]] std::size_t count() const { return streams_.size(); }

  struct Counters {
    std::int64_t placed = 0, completed = 0, cancelled = 0, orphaned = 0;
    std::int64_t frames = 0, resent = 0, unknown = 0;
    std::int64_t malformed = 0, fenced = 0, doubled = 0;  // messages that were dropped
    std::int64_t refused = 0;                             // placements that nothing was begun of
  };
  [[nodiscard]] const Counters& counters() const { return counters_; }

 private:
  using Key = std::pair<std::string, std::uint64_t>;  // gateway and number of the stream

  struct SentFrame {
    Bytes message;
    Instant sent;
  };
  struct Stream {
    std::uint32_t attempt = 0;
    StreamRunner::RunId run = 0;
    bool running = true;  // the runner has it
    bool paused = false;
    std::size_t open_choices = 0;
    std::uint64_t received = 0;  // frames below were acknowledged; the ring begins here
    std::uint64_t allowed = 0;
    std::deque<SentFrame> ring;
    std::deque<StreamEvent> pending;  // not in a frame yet
    Instant credited{0};
  };
  /// Pieces of a placement.
  struct Assembly {
    std::uint32_t attempt = 0;
    std::vector<std::optional<Bytes>> parts;
    std::size_t missing = 0, bytes = 0;
    Instant begun{0};
  };
  struct Ended {
    std::uint32_t attempt = 0;
    Instant when{0};
  };

  void on_put(std::string_view subject, std::span<const std::byte> message);
  void on_part(const Key& key, PlacePart part);
  void place(const Key& key, std::uint32_t attempt, Placement placement);
  void refuse(const Key& key, std::uint32_t attempt, ErrorKind kind, const std::string& message);
  void on_credit(const Key& key, const StreamCredit& credit);
  void on_events(const Key& key, StreamRunner::RunId run, std::vector<StreamEvent> events);
  void credit(const Key& key, Stream& stream, std::uint64_t received, std::uint64_t allowed);
  void send(const Key& key, Stream& stream);
  void end(const Key& key);
  void look();
  [[nodiscard]] bool is_credited(const Stream& stream) const;
  /// The highest attempt that was begun; 0: none.
  [[nodiscard]] std::uint32_t latest(const Key& key) const;

  Transport* transport_;
  std::string node_;
  StreamRunner* runner_;
  std::uint32_t life_;
  ClusterTiming timing_;
  bool draining_ = false;
  StreamRunner::RunId next_run_ = 1;
  std::map<Key, Stream> streams_;
  std::map<Key, Assembly> assemblies_;
  std::size_t assembly_bytes_ = 0;
  std::set<std::pair<std::string, std::uint64_t>> gateways_;  // with the upper half of their streams' numbers
  std::map<Key, Ended> ended_;
  Transport::TimerId timer_ = 0;
  Counters counters_;
};

}  // namespace millrace
