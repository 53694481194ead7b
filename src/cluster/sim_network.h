// SimNetwork: a NATS server and its clients on a virtual clock, with the weather of real networks and worse.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cluster/sim_clock.h"
#include "cluster/subject_tree.h"
#include "cluster/transport.h"
#include "cluster/wire.h"

namespace millrace {

/// What happens to messages on their way, each for itself.
struct SimWeather {
  Duration delay = std::chrono::microseconds(300);   // of each
  Duration jitter = std::chrono::microseconds(200);  // up to so much more: messages overtake each other
  double lost = 0.0;                                 // share of messages
  double doubled = 0.0;
  double late = 0.0;  // share that takes up to `late_by` longer
  Duration late_by = std::chrono::seconds(1);
};

/// Random numbers of a seed, the same everywhere.
class SimDice {
 public:
  explicit SimDice(std::uint64_t seed) : seed_(seed) {}
  [[nodiscard]] double uniform();  // in [0, 1)
  [[nodiscard]] bool chance(double share) { return share > 0.0 && uniform() < share; }
  [[nodiscard]] std::uint64_t below(std::uint64_t end);

 private:
  std::uint64_t seed_, next_ = 0;
};

/// Deterministic by its seed.
class SimNetwork {
 public:
  SimNetwork(SimClock& clock, std::uint64_t seed);
  ~SimNetwork();

  SimWeather weather;

  /// A client under this name; it must not outlive the network. A client that ends takes what is under way to it along.
  std::unique_ptr<Transport> join(const std::string& name);

  /// The process stands still (SIGSTOP): what reaches it and its timers wait, its clock does not.
  void freeze(std::string_view name);
  void thaw(std::string_view name);
  [[nodiscard]] bool is_frozen(std::string_view name) const;
  /// Somebody calls into the process; if it stands still, it takes that up once it goes on. Of one that is not there:
  /// nothing.
  void call(std::string_view name, std::function<void()> what);

  /// The client's clock jumps forward, as after a machine has slept; timers that were set stay where they are.
  void jump(std::string_view name, Duration by);

  /// The cable is pulled: what is said to it is lost, what it says waits as in a client's buffer, or is lost.
  void cut(std::string_view name, bool keeps_what_it_says);
  void mend(std::string_view name);

  /// The server restarts: what is under way is lost, and nobody is connected until start_server().
  void stop_server();
  void start_server();

  struct Counters {
    std::int64_t published = 0, delivered = 0, lost = 0, doubled = 0;
  };
  [[nodiscard]] const Counters& counters() const { return counters_; }

 private:
  class Client;
  struct Subscription {
    std::shared_ptr<Client> client;
    std::shared_ptr<const Transport::Handler> handler;
  };
  struct Message;

  void publish(Client& from, std::string_view subject, std::span<const std::byte> bytes);
  void deliver(const std::shared_ptr<const Message>& message, const Subscription& to);
  void flush(Client& client);

  SimClock* clock_;
  SimDice dice_;
  SubjectTree<Subscription> subscriptions_;
  std::map<std::string, std::shared_ptr<Client>, std::less<>> clients_;
  bool server_up_ = true;
  std::uint64_t server_life_ = 0;
  Counters counters_;
};

}  // namespace millrace
