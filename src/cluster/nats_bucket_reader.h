// NatsBucketReader: what stands in a bucket of JetStream's key-value store, for those who may only look. A watch would
// take the right to make a consumer, and whoever has that chooses the subject on which the server publishes what it
// reads: the subjects of others, too. So this one asks, again and again.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include "cluster/nats_transport.h"

namespace millrace {

/// Calls back on the transport's loop, as long as it lives. It waits for the server on a thread of its own.
class NatsBucketReader {
 public:
  /// Each key that is there, and each that has changed. No value: it was taken away.
  using Reader =
      std::function<void(const std::string& key, std::optional<std::string_view> value, std::uint64_t revision)>;

  /// Asks every `every`. `on_message`: in one line, why nothing can be read. `transport` and `loop` must outlive it.
  NatsBucketReader(NatsTransport& transport, EventLoop& loop, std::string bucket, Reader reader,
                   std::function<void(const std::string&)> on_message,
                   std::chrono::milliseconds every = std::chrono::seconds(2));
  ~NatsBucketReader();
  NatsBucketReader(const NatsBucketReader&) = delete;
  NatsBucketReader& operator=(const NatsBucketReader&) = delete;

 private:
  struct Shared;

  std::shared_ptr<Shared> shared_;
  std::thread thread_;
};

}  // namespace millrace
