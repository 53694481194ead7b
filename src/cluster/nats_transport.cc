#include "cluster/nats_transport.h"

#include <fmt/format.h>

#include <mutex>
#include <thread>
#include <utility>

#include "cluster/nats_handles.h"
#include "cluster/nats_login.h"
#include "cluster/wire.h"
#include "core/check.h"

namespace millrace {

namespace {

constexpr int kReconnectBuffer = 8 << 20;            // bytes that wait for a server
constexpr std::int64_t kReconnectWait = 250;         // ms between two attempts, and
constexpr std::int64_t kReconnectJitter = 250;       // so much more
constexpr std::int64_t kConnectTimeout = 2000;       // ms
constexpr int kFirstLogins = 4;                      // before a server that breaks them off is given up
constexpr std::int64_t kPingInterval = 2000;         // ms; a cable that was pulled is noticed after two of them
constexpr std::size_t kWaitingBytes = 256ull << 20;  // of messages that this process has not taken yet
constexpr std::size_t kPerMessage = 1024;            // that one takes beside its bytes
constexpr std::size_t kMostSpent = 256;              // messages that are freed together
constexpr std::size_t kMostSpentBytes = 1 << 20;     // … and their bytes

std::string describe(natsStatus status) {
  const char* detail = nats_GetLastError(nullptr);
  const std::string text = natsStatus_GetText(status);
  return detail == nullptr || *detail == '\0' || text == detail ? text : fmt::format("{} ({})", text, detail);
}

}  // namespace

/// What callbacks of libnats, on its threads, and the loop have in common. Calls are made only while `alive`.
struct NatsTransport::Shared {
  EventLoop* loop = nullptr;
  NatsLogin login;
  std::function<void(const std::string&)> on_message, on_given_up;
  std::atomic<bool> alive{true}, connected{false};
  std::atomic<std::size_t> waiting_bytes{0};
  std::atomic<std::int64_t> received{0}, dropped{0};

  // Messages that have been read. libnats has a thread that frees them: it is not woken for each.
  std::vector<std::shared_ptr<natsMsg>> spent;  // the loop alone, as the next one
  std::size_t spent_bytes = 0;

  std::mutex posting;            // held while a call is handed to the loop, so that none comes behind the end
  std::shared_ptr<Shared> self;  // until libnats has made its last callback

  template <typename Call>
  static void post(const std::shared_ptr<Shared>& shared, Call call) {
    const std::lock_guard lock(shared->posting);
    if (!shared->alive) return;
    shared->loop->post([shared, call = std::move(call)]() mutable {
      if (shared->alive) call(*shared);
    });
  }
};

struct NatsTransport::Subscription {
  std::shared_ptr<Shared> shared;
  std::shared_ptr<const Handler> handler;
  natsSubscription* subscription = nullptr;
  std::shared_ptr<Subscription> self;  // as Shared has it
};

NatsTransport::NatsTransport(EventLoop& loop, std::function<void(const std::string&)> on_message)
    : loop_(&loop), shared_(std::make_shared<Shared>()) {
  shared_->loop = &loop;
  shared_->on_message = std::move(on_message);
}

Result<std::unique_ptr<NatsTransport>> NatsTransport::connect(const NatsOptions& options, EventLoop& loop,
                                                              std::function<void(const std::string&)> on_message) {
  natsOptions* raw = nullptr;
  if (const natsStatus status = natsOptions_Create(&raw); status != NATS_OK) {
    return fail("NATS: {}", describe(status));
  }
  const nats::Options kept(raw);
  std::unique_ptr<NatsTransport> transport(new NatsTransport(loop, std::move(on_message)));
  Shared* const shared = transport->shared_.get();

  std::vector<std::string> urls;
  for (std::size_t at = 0; at <= options.url.size();) {
    const std::size_t comma = std::min(options.url.find(',', at), options.url.size());
    if (comma > at) urls.push_back(options.url.substr(at, comma - at));
    at = comma + 1;
  }
  std::vector<const char*> servers;
  servers.reserve(urls.size());
  for (const std::string& url : urls) servers.push_back(url.c_str());
  const std::string inbox = "_INBOX_" + options.name;

  struct Callback {
    static void tell(void* closure, bool connected, std::string message) {
      const std::shared_ptr<Shared> shared = static_cast<Shared*>(closure)->self;
      shared->connected = connected;
      Shared::post(shared, [message = std::move(message)](const Shared& s) { s.on_message(message); });
    }
    static void closed(natsConnection* connection, void* closure) {
      const char* detail = nullptr;
      const natsStatus status = natsConnection_GetLastError(connection, &detail);
      const std::shared_ptr<Shared> shared = static_cast<Shared*>(closure)->self;
      shared->connected = false;
      // Nobody has asked for it: after two refusals the library gives up.
      Shared::post(shared, [why = std::string(detail == nullptr || *detail == '\0' ? natsStatus_GetText(status)
                                                                                   : detail)](const Shared& s) {
        s.on_message("NATS is given up: " + why);
        if (s.on_given_up) s.on_given_up(why);
      });
      const std::shared_ptr<Shared> last = std::exchange(static_cast<Shared*>(closure)->self, nullptr);
    }
    static void up(natsConnection*, void* closure) { tell(closure, true, "connected to NATS"); }
    static void down(natsConnection*, void* closure) {
      tell(closure, false, "the connection to NATS is lost; it is being looked for");
    }
    static void error(natsConnection* connection, natsSubscription*, natsStatus status, void* closure) {
      const std::shared_ptr<Shared> shared = static_cast<Shared*>(closure)->self;
      const char* detail = nullptr;  // such as which subject is not permitted
      (void)natsConnection_GetLastError(connection, &detail);
      std::string message = fmt::format("NATS: {}", natsStatus_GetText(status));
      if (detail != nullptr && *detail != '\0') message += fmt::format(" ({})", detail);
      Shared::post(shared, [message = std::move(message)](const Shared& s) { s.on_message(message); });
    }
  };
  void* const closure = shared;

  natsStatus status = NATS_OK;
  std::string_view what;
  const auto set = [&](std::string_view setting, natsStatus result) {
    if (status == NATS_OK && result != NATS_OK) {
      status = result;
      what = setting;
    }
  };
  set("the address", natsOptions_SetServers(raw, servers.data(), static_cast<int>(servers.size())));
  set("the name", natsOptions_SetName(raw, options.name.c_str()));
  set("the inbox", natsOptions_SetCustomInboxPrefix(raw, inbox.c_str()));
  if (!options.ca_file.empty()) {
    set("TLS", natsOptions_SetSecure(raw, true));
    set("the certificates", natsOptions_LoadCATrustedCertificates(raw, options.ca_file.c_str()));
  }
  set("the timeout", natsOptions_SetTimeout(raw, kConnectTimeout));
  set("pings", natsOptions_SetPingInterval(raw, kPingInterval));
  set("pings", natsOptions_SetMaxPingsOut(raw, 2));
  set("reconnecting", natsOptions_SetMaxReconnect(raw, -1));
  set("reconnecting", natsOptions_SetReconnectWait(raw, kReconnectWait));
  set("reconnecting", natsOptions_SetReconnectJitter(raw, kReconnectJitter, kReconnectJitter));
  set("reconnecting", natsOptions_SetReconnectBufSize(raw, kReconnectBuffer));
  set("callbacks", natsOptions_SetDisconnectedCB(raw, &Callback::down, closure));
  set("callbacks", natsOptions_SetReconnectedCB(raw, &Callback::up, closure));
  set("callbacks", natsOptions_SetClosedCB(raw, &Callback::closed, closure));
  set("callbacks", natsOptions_SetErrorHandler(raw, &Callback::error, closure));
  // A frame leaves at once: its reader waits for it, and the library's flusher would take another thread's turn.
  set("sending", natsOptions_SetSendAsap(raw, true));
  if (status != NATS_OK) return fail("NATS: {} can't be used: {}", what, describe(status));

  shared->login = {options.credentials, options.nkey_seed, options.nkey};
  MILLRACE_CHECK_OK(shared->login.set_in(*raw));

  shared->self = transport->shared_;
  // A first login that a server breaks off ends a connection that is to be tried again, too (libnats before 3.12, which
  // then knows of no server any more), so this tries; one that finds no server is the library's to repeat.
  for (int failed = 0;;) {
    status = natsConnection_Connect(&transport->connection_, raw);
    if (status == NATS_OK || status == NATS_NO_SERVER || status == NATS_CONNECTION_AUTH_FAILED) break;
    if (++failed == kFirstLogins) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(kReconnectWait));
  }
  if (status == NATS_NO_SERVER) {
    set("callbacks", natsOptions_SetRetryOnFailedConnect(raw, true, &Callback::up, closure));
    status = natsConnection_Connect(&transport->connection_, raw);
  }
  if (status == NATS_OK) {
    shared->connected = true;
  } else if (status != NATS_NOT_YET_CONNECTED) {
    shared->self.reset();
    std::string why = describe(status);
    if (status == NATS_CONNECTION_AUTH_FAILED) {
      why = fmt::format("NATS at {} refuses {}: {}", options.url, options.name, why);
    } else {
      why = fmt::format("NATS at {}: {}", options.url, why);
    }
    return Error{std::move(why), ErrorKind::unavailable};
  }
  return transport;
}

NatsTransport::~NatsTransport() {
  {
    const std::lock_guard lock(shared_->posting);
    shared_->alive = false;
  }
  if (connection_ != nullptr) {
    natsConnection_Close(connection_);
    for (const std::shared_ptr<Subscription>& subscription : subscriptions_) {
      natsSubscription_Destroy(subscription->subscription);
    }
    natsConnection_Destroy(connection_);
    connection_ = nullptr;
  }
}

void NatsTransport::publish(std::string_view subject, std::span<const std::byte> message) {
  MILLRACE_CHECK(message.size() <= kMaxMessage, "a message of {} bytes on {}", message.size(), subject);
  ++published_;
  const natsStatus status = natsConnection_Publish(connection_, std::string(subject).c_str(), message.data(),
                                                   static_cast<int>(message.size()));
  if (status != NATS_OK) ++unsent_;
}

void NatsTransport::subscribe(std::string_view pattern, Handler handler) {
  auto subscription = std::make_shared<Subscription>();
  subscription->shared = shared_;
  subscription->handler = std::make_shared<const Handler>(std::move(handler));
  const natsMsgHandler take = [](natsConnection*, natsSubscription*, natsMsg* message, void* closure) {
    const auto* own = static_cast<const Subscription*>(closure);
    const std::shared_ptr<Shared>& shared = own->shared;
    const auto bytes = static_cast<std::size_t>(natsMsg_GetDataLength(message)), held_bytes = bytes + kPerMessage;
    // Frames are numbered, so what is dropped is asked for again; memory is not to be had again.
    if (shared->waiting_bytes + held_bytes > kWaitingBytes) {
      ++shared->dropped;
      natsMsg_Destroy(message);
      return;
    }
    shared->waiting_bytes += held_bytes;
    ++shared->received;
    const auto held = std::shared_ptr<natsMsg>(message, natsMsg_Destroy);
    Shared::post(shared, [handler = own->handler, held, bytes, held_bytes](Shared& s) {
      s.waiting_bytes -= held_bytes;
      (*handler)(natsMsg_GetSubject(held.get()), std::as_bytes(std::span(natsMsg_GetData(held.get()), bytes)));
      s.spent_bytes += bytes;
      s.spent.push_back(held);
      if (s.spent.size() < kMostSpent && s.spent_bytes < kMostSpentBytes) return;
      s.spent.clear();
      s.spent_bytes = 0;
    });
  };
  const natsStatus status = natsConnection_Subscribe(&subscription->subscription, connection_,
                                                     std::string(pattern).c_str(), take, subscription.get());
  if (status != NATS_OK) {  // refused, and given up already: when_given_up() tells it
    Shared::post(shared_, [message = fmt::format("NATS: subscribing to {}: {}", pattern, describe(status))](
                              const Shared& s) { s.on_message(message); });
    return;
  }
  subscription->self = subscription;
  const natsOnCompleteCB complete = [](void* closure) {
    const std::shared_ptr<Subscription> last = std::exchange(static_cast<Subscription*>(closure)->self, nullptr);
  };
  natsSubscription_SetOnCompleteCB(subscription->subscription, complete, subscription.get());
  subscriptions_.push_back(std::move(subscription));
}

Transport::TimerId NatsTransport::after(Duration delay, std::function<void()> call) {
  return loop_->after(delay, [shared = shared_, call = std::move(call)] {
    if (shared->alive) call();
  });
}

void NatsTransport::when_given_up(std::function<void(const std::string&)> call) {
  shared_->on_given_up = std::move(call);
}

bool NatsTransport::connected() const {
  return shared_->connected;
}

NatsTransport::Counters NatsTransport::counters() const {
  return {.published = published_, .unsent = unsent_, .received = shared_->received, .dropped = shared_->dropped};
}

}  // namespace millrace
