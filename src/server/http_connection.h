// HttpConnection: one client's connection, from its first byte to its last: requests one after the other, each answered
// at once or over time, within limits of size and time.
#pragma once

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "server/http_answer.h"
#include "server/http_auth.h"
#include "server/http_parser.h"
#include "server/http_router.h"
#include "server/http_text.h"
#include "server/http_wire.h"

namespace millrace {

struct HttpLimits {
  using Seconds = std::chrono::duration<double>;

  std::size_t header_bytes = 16 << 10;         // of a request's head; more: 431
  std::uint64_t body_bytes = 32 << 20;         // of one request; more: 413
  std::uint64_t all_bodies_bytes = 256 << 20;  // of all requests that are being read or answered; more: 503
  Seconds header_timeout{15};  // for a whole head and for a TLS handshake; a body has this and 1 s for each 4 KiB
  Seconds idle_timeout{75};    // between two requests of a connection
  Seconds write_timeout{60};   // without the client taking a single byte
};

/// Decides who asks by the header Authorization: a name, or a refusal. Nothing: the server's keys are to decide. Any
/// thread, at once on several; quick.
using WhoAsks = std::function<std::optional<std::variant<std::string, HttpReply>>(std::string_view authorization)>;

/// What the connections of a server share; it outlives them.
struct HttpContext {
  HttpLimits limits;
  std::vector<HttpRoute> routes;
  CorsOrigins cors;
  WhoAsks who;                                         // may be empty
  std::function<void(const HttpRecord&)> on_exchange;  // on any of the server's threads; may be empty
  std::function<void()> on_quiet;                      // draining, and the last exchange has ended
  std::function<void(const std::string&)> on_failure;  // one line of something that should not happen

  std::atomic<bool> draining{false};
  std::atomic<bool> ending{false};           // what waits for a worker thread is not worth its time any more
  std::atomic<std::int64_t> exchanges{0};    // under way
  std::atomic<std::uint64_t> body_bytes{0};  // of these

  // Bodies are parsed, rendered and tokenised here, never on a thread that serves streams. Large ones have a thread of
  // their own, so that small ones need not wait for them.
  boost::asio::thread_pool quick{1}, bulk{1};

  std::shared_ptr<const ApiKeys> keys() const;  // null: none are asked for
  void set_keys(std::shared_ptr<const ApiKeys> keys);

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const ApiKeys> keys_;
};

/// Lives as long as its coroutines. Everything but what says otherwise happens on the executor of its wire, which has
/// one thread.
class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  /// `peer`: address and port for the log. `lease` is held until the connection is gone.
  HttpConnection(std::unique_ptr<Wire> wire, HttpContext& context, std::string peer, std::shared_ptr<void> lease);
  ~HttpConnection();

  void serve();   // any thread
  void refuse();  // any thread: answers 503 whatever is asked, and closes
  void look();    // any thread: the context's `draining` has changed

 private:
  using Clock = std::chrono::steady_clock;
  using Self = std::shared_ptr<HttpConnection>;
  template <typename T>
  using Awaitable = boost::asio::awaitable<T>;
  struct Exchange;

  void spawn(Awaitable<void> task);
  Awaitable<void> run(Self self);
  Awaitable<void> run_refusal(Self self);
  Awaitable<void> pump(Self self);

  Awaitable<bool> request_begins(bool first);
  Awaitable<bool> exchange();
  Awaitable<bool> read_head(Exchange& x);
  Awaitable<bool> read_body(Exchange& x, bool keep);
  std::optional<HttpReply> refusal(Exchange& x) const;
  Awaitable<HttpOutcome> handle(Exchange& x);
  Awaitable<void> send_reply(Exchange& x, HttpReply reply);
  [[nodiscard]] std::string begin_stream(Exchange& x, std::string_view type,
                                         std::vector<std::pair<std::string, std::string>> headers);
  Awaitable<void> send_answer(Exchange& x, std::unique_ptr<HttpAnswer> answer);
  Awaitable<bool> send(Exchange& x, std::string_view data);
  Awaitable<void> linger();
  void record(Exchange& x) const;

  HttpParser::Progress feed(Exchange& x, std::optional<HttpFault>& fault);
  Awaitable<void> sleep_until(Clock::time_point deadline);
  void notify();
  [[nodiscard]] static Clock::time_point after(HttpLimits::Seconds seconds);
  [[nodiscard]] std::string head_of(Exchange& x, const HttpReply& reply, BodyFraming framing) const;

  std::shared_ptr<void> lease_;
  std::unique_ptr<Wire> wire_;
  HttpContext* context_;
  std::string peer_;
  boost::asio::any_io_executor executor_;
  boost::asio::steady_timer wake_;       // what run() sleeps on
  boost::asio::steady_timer room_;       // what pump() sleeps on while input_ is full
  boost::asio::steady_timer write_end_;  // closes the wire under a reader that takes nothing
  std::uint64_t writes_ = 0;

  // Reading never stops while something is answered, since it is reading that notices a client's leaving. What comes
  // early stays here, up to a bound.
  std::string input_;
  bool gone_ = false;       // the client has closed, or the connection is broken
  bool closed_ = false;     // run() has ended
  bool woken_ = false;      // the answer has something new
  bool streaming_ = false;  // leaving is to end a write that is under way
};

}  // namespace millrace
