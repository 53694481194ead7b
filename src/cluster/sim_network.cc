#include "cluster/sim_network.h"

#include <utility>

#include "core/check.h"
#include "core/philox.h"

namespace millrace {

double SimDice::uniform() {
  constexpr double kTo53Bits = 0x1p-53;
  return static_cast<double>(below(std::uint64_t{1} << 53)) * kTo53Bits;
}

std::uint64_t SimDice::below(std::uint64_t end) {
  const std::uint64_t at = next_++;
  const PhiloxBlock block = philox4x32_10({static_cast<std::uint32_t>(at), static_cast<std::uint32_t>(at >> 32), 7, 0},
                                          {static_cast<std::uint32_t>(seed_), static_cast<std::uint32_t>(seed_ >> 32)});
  return (std::uint64_t{block[0]} << 32 | block[1]) % end;
}

struct SimNetwork::Message {
  std::string subject;
  Bytes bytes;
};

/// What the network knows of a client; the transport that a client holds points to it.
class SimNetwork::Client {
 public:
  explicit Client(SimClock& of) : clock(&of) {}

  /// Calls now, or once the client is thawed.
  void call(std::function<void()> what) {
    if (!alive) return;
    if (frozen) {
      waiting.push_back(std::move(what));
    } else {
      what();
    }
  }

  SimClock* clock;
  bool alive = true, frozen = false, cut = false, keeps = false;
  Duration ahead{0};                                // of the network's clock
  std::deque<std::function<void()>> waiting;        // while frozen
  std::deque<std::shared_ptr<const Message>> said;  // while there is no server for it
};

namespace {

constexpr std::size_t kBuffered = 4096;  // messages that a client without a server keeps

}  // namespace

SimNetwork::SimNetwork(SimClock& clock, std::uint64_t seed) : clock_(&clock), dice_(seed) {}

SimNetwork::~SimNetwork() = default;

std::unique_ptr<Transport> SimNetwork::join(const std::string& name) {
  class ClientTransport : public Transport {
   public:
    ClientTransport(SimNetwork& network, std::string name, std::shared_ptr<Client> client)
        : network_(&network), name_(std::move(name)), client_(std::move(client)) {}
    ~ClientTransport() override {
      client_->alive = false;
      client_->waiting.clear();
      network_->subscriptions_.remove_if([this](const Subscription& s) { return s.client == client_; });
      const auto here = network_->clients_.find(name_);
      if (here != network_->clients_.end() && here->second == client_) network_->clients_.erase(here);
    }
    void publish(std::string_view subject, std::span<const std::byte> message) override {
      network_->publish(*client_, subject, message);
    }
    void subscribe(std::string_view pattern, Handler handler) override {
      network_->subscriptions_.add(pattern, {client_, std::make_shared<const Handler>(std::move(handler))});
    }
    [[nodiscard]] Instant now() const override { return client_->clock->now() + client_->ahead; }
    TimerId after(Duration delay, std::function<void()> call) override {
      return client_->clock->at(client_->clock->now() + delay, [client = client_, call = std::move(call)]() mutable {
        client->call(std::move(call));
      });
    }
    void cancel(TimerId timer) override { client_->clock->cancel(timer); }
    [[nodiscard]] bool connected() const override { return network_->server_up_ && !client_->cut; }

   private:
    SimNetwork* network_;
    std::string name_;
    std::shared_ptr<Client> client_;
  };

  const auto client = std::make_shared<Client>(*clock_);
  clients_[name] = client;
  return std::make_unique<ClientTransport>(*this, name, client);
}

void SimNetwork::publish(Client& from, std::string_view subject, std::span<const std::byte> bytes) {
  MILLRACE_CHECK(bytes.size() <= kMaxMessage, "a message of {} bytes on {}", bytes.size(), subject);
  ++counters_.published;
  auto message = std::make_shared<const Message>(Message{std::string(subject), Bytes(bytes.begin(), bytes.end())});
  if (!server_up_ || from.cut) {
    if ((server_up_ && !from.keeps) || from.said.size() >= kBuffered) {
      ++counters_.lost;
      return;
    }
    from.said.push_back(std::move(message));
    return;
  }
  subscriptions_.match(subject, [&](const Subscription& to) { deliver(message, to); });
}

void SimNetwork::deliver(const std::shared_ptr<const Message>& message, const Subscription& to) {
  if (dice_.chance(weather.lost)) {
    ++counters_.lost;
    return;
  }
  const int copies = dice_.chance(weather.doubled) ? 2 : 1;
  counters_.doubled += copies - 1;
  for (int i = 0; i < copies; ++i) {
    Duration delay = weather.delay + Duration(dice_.below(static_cast<std::uint64_t>(weather.jitter.count()) + 1));
    if (dice_.chance(weather.late)) {
      delay += Duration(dice_.below(static_cast<std::uint64_t>(weather.late_by.count()) + 1));
    }
    clock_->at(clock_->now() + delay, [this, message, to, life = server_life_] {
      if (life != server_life_ || to.client->cut || !to.client->alive) {
        ++counters_.lost;
        return;
      }
      ++counters_.delivered;
      to.client->call([message, handler = to.handler] { (*handler)(message->subject, message->bytes); });
    });
  }
}

void SimNetwork::flush(Client& client) {
  for (const std::shared_ptr<const Message>& message : std::exchange(client.said, {})) {
    subscriptions_.match(message->subject, [&](const Subscription& to) { deliver(message, to); });
  }
}

void SimNetwork::freeze(std::string_view name) {
  if (const auto client = clients_.find(name); client != clients_.end()) client->second->frozen = true;
}

void SimNetwork::thaw(std::string_view name) {
  const auto found = clients_.find(name);
  if (found == clients_.end() || !std::exchange(found->second->frozen, false)) return;
  const std::shared_ptr<Client> client = found->second;
  std::deque<std::function<void()>> waiting = std::exchange(client->waiting, {});
  for (std::function<void()>& call : waiting) client->call(std::move(call));
}

bool SimNetwork::is_frozen(std::string_view name) const {
  const auto client = clients_.find(name);
  return client != clients_.end() && client->second->frozen;
}

void SimNetwork::call(std::string_view name, std::function<void()> what) {
  if (const auto client = clients_.find(name); client != clients_.end()) {
    const std::shared_ptr<Client> here = client->second;
    here->call(std::move(what));
  }
}

void SimNetwork::jump(std::string_view name, Duration by) {
  if (const auto client = clients_.find(name); client != clients_.end()) client->second->ahead += by;
}

void SimNetwork::cut(std::string_view name, bool keeps_what_it_says) {
  const auto client = clients_.find(name);
  if (client == clients_.end()) return;
  client->second->cut = true;
  client->second->keeps = keeps_what_it_says;
}

void SimNetwork::mend(std::string_view name) {
  const auto client = clients_.find(name);
  if (client == clients_.end() || !std::exchange(client->second->cut, false) || !server_up_) return;
  flush(*client->second);
}

void SimNetwork::stop_server() {
  server_up_ = false;
  ++server_life_;
}

void SimNetwork::start_server() {
  server_up_ = true;
  for (const auto& [name, client] : clients_) {
    if (!client->cut) flush(*client);
  }
}

}  // namespace millrace
