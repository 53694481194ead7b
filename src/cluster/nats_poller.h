// NatsPoller: waits for a NATS connection's socket, in the place of the threads that libnats has for that. One thread
// reads for all subscriptions, and what a caller writes can leave in one piece.
#pragma once

#include <nats/nats.h>

#include <atomic>
#include <functional>
#include <mutex>
#include <thread>

namespace millrace {

class NatsPoller {
 public:
  /// `came` is called on the poller's thread when something has been read.
  explicit NatsPoller(std::function<void()> came);
  /// Ends its thread. The connection must not be used by others any more, but need not be closed.
  ~NatsPoller();
  NatsPoller(const NatsPoller&) = delete;
  NatsPoller& operator=(const NatsPoller&) = delete;

  /// Before the connection is made with them; the poller must outlive it.
  natsStatus use_for(natsOptions* options);

  /// What this thread publishes while one lives is not sent: it calls flush() later.
  class Later {
   public:
    Later();
    ~Later();
    Later(const Later&) = delete;
    Later& operator=(const Later&) = delete;
  };
  /// Any thread. Sends what waits, as far as the socket takes it; the rest follows by itself.
  void flush();

 private:
  static natsStatus attach(void** self, void* poller, natsConnection* connection, natsSock socket);
  static natsStatus on_read(void* self, bool add);
  static natsStatus on_write(void* self, bool add);
  static natsStatus detach(void* self);
  void wake();
  void write_some();
  void run();

  std::function<void()> came_;
  int woken_ = -1;  // an eventfd

  std::mutex writing_;  // held while a part is written: libnats takes a second writer, who has nothing, for the end
  std::mutex mutex_;
  natsConnection* connection_ = nullptr;  // guarded by mutex_, as all below
  int socket_ = -1;
  bool reads_ = false, writes_ = false, stop_ = false;

  std::thread thread_;  // last: it uses all of the above
};

}  // namespace millrace
