// NatsTransport: the cluster's transport over a NATS server (libnats). It dials out, and goes on dialling for ever.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cluster/event_loop.h"
#include "cluster/transport.h"
#include "core/result.h"

struct __natsConnection;

namespace millrace {

struct NatsOptions {
  std::string url = "nats://127.0.0.1:4222";  // several: separated by commas
  std::string name = {};                      // of the node or gateway; its inbox is _INBOX_NAME
  std::string credentials = {};               // file with a user's JWT and seed, or
  std::string nkey_seed = {};                 // file with an NKey seed, and
  std::string nkey = {};                      // its public key; both empty: no authentication
  std::string ca_file = {};                   // certificates that are trusted; not empty: TLS is asked for
};

class NatsTransport : public Transport {
 public:
  /// Connects, or begins to try to. Error: a file or an address is wrong, the server refuses this identity, or breaks
  /// off four logins. A server that is not there is no error, and is looked for until it is; one that refuses twice
  /// later is given up. `loop` calls back and must outlive the transport. `on_message` is told, on the loop, in one
  /// line what becomes of the connection.
  static Result<std::unique_ptr<NatsTransport>> connect(const NatsOptions& options, EventLoop& loop,
                                                        std::function<void(const std::string&)> on_message);
  /// No call is made any more.
  ~NatsTransport() override;

  void publish(std::string_view subject, std::span<const std::byte> message) override;
  void subscribe(std::string_view pattern, Handler handler) override;
  [[nodiscard]] Instant now() const override { return loop_->now(); }
  TimerId after(Duration delay, std::function<void()> call) override;
  void cancel(TimerId timer) override { loop_->cancel(timer); }
  [[nodiscard]] bool connected() const override;

  struct Counters {
    std::int64_t published = 0, unsent = 0, received = 0, dropped = 0;
  };
  /// `unsent`: there was no server, and the buffer was full; `dropped`: this process was too slow.
  [[nodiscard]] Counters counters() const;

  /// On the loop, with the reason: the server has refused this identity, and is not looked for any more.
  void when_given_up(std::function<void(const std::string&)> call);

  /// For what else NATS offers (NatsRegistry).
  [[nodiscard]] __natsConnection* connection() const { return connection_; }

 private:
  struct Shared;
  struct Subscription;

  NatsTransport(EventLoop& loop, std::function<void(const std::string&)> on_message);

  EventLoop* loop_;
  std::shared_ptr<Shared> shared_;  // with the callbacks of libnats, which end later
  __natsConnection* connection_ = nullptr;
  std::vector<std::shared_ptr<Subscription>> subscriptions_;
  std::int64_t published_ = 0, unsent_ = 0;
};

}  // namespace millrace
