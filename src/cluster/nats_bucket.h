// NatsBucket: a bucket of JetStream's key-value store. What the server answers is waited for on threads of its own, and
// told on the loop.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "cluster/event_loop.h"
#include "cluster/nats_transport.h"
#include "core/result.h"

namespace millrace {

struct BucketOptions {
  std::string name;
  std::size_t most_bytes = 64 << 10;   // of a value
  bool makes = false;                  // where there is none; not everybody's credentials allow that
  int replicas = 1;                    // servers that have it, of one that is made
  std::chrono::nanoseconds oldest{0};  // of one that is made: what was written longer ago is gone; 0: nothing ever is
  std::int64_t most_stored = 0;        // bytes of one that is made: above them the oldest goes first; 0: no such bound
  bool silent = false;                 // … whose writers get no answer: put() would wait for one in vain
};

struct BucketEntry {
  std::string key;
  std::optional<std::string> value;  // none: it was removed
  std::uint64_t revision = 0;        // grows with every write to the bucket
};

class NatsBucket {
 public:
  using Written = std::function<void(Result<std::uint64_t>)>;
  using Read = std::function<void(Result<std::optional<BucketEntry>>)>;

  /// `transport` must outlive it. `on_message`: on the loop, in one line, what is wrong with the bucket. Nothing is
  /// called back once it has ended.
  NatsBucket(NatsTransport& transport, EventLoop& loop, BucketOptions options,
             std::function<void(const std::string&)> on_message);
  ~NatsBucket();
  NatsBucket(const NatsBucket&) = delete;
  NatsBucket& operator=(const NatsBucket&) = delete;

  // Any thread. They are done in their order, and answer on the loop; writes with the new revision. Errors: the server
  // is away or refuses (unavailable); the value is too large (invalid).

  void put(std::string key, std::string value, Written done);
  /// Only if the key's revision is `revision`; 0: only if there is no such key. Error kind busy: it is not so. After
  /// `unavailable` it may have been written all the same.
  void update(std::string key, std::string value, std::uint64_t revision, Written done);
  void remove(std::string key, Written done);
  void get(std::string key, Read done);

  /// Once. All entries that are there, then one without a key, and from then on whatever changes; again from the
  /// beginning after the server was away.
  void watch(std::function<void(const BucketEntry&)> watcher);

 private:
  struct Shared;

  std::shared_ptr<Shared> shared_;
  std::thread worker_, watcher_;
};

}  // namespace millrace
