#include "server/server.h"

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <csignal>
#include <exception>
#include <thread>
#include <unordered_map>

namespace millrace {

namespace {

using asio::ip::tcp;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
constexpr std::int64_t kMostRefusals = 64;  // connections above the limit that are told so, at a time
constexpr std::chrono::milliseconds kAcceptPause{100};

std::string show(const tcp::endpoint& endpoint) {
  const auto address = endpoint.address();
  return fmt::format("{}{}{}:{}", address.is_v6() ? "[" : "", address.to_string(), address.is_v6() ? "]" : "",
                     endpoint.port());
}

}  // namespace

class Server::Impl {
 public:
  Impl(ServerOptions options, std::vector<HttpRoute> routes) : options_(std::move(options)) {
    context_.limits = options_.limits;
    context_.routes = std::move(routes);
    context_.cors = options_.cors;
    context_.who = options_.who;
    context_.on_exchange = options_.on_exchange;
    context_.on_failure = options_.on_message;
    context_.on_quiet = [this] { asio::post(*threads_.front(), [this] { end_if_quiet(); }); };
    // One context a thread, so that what belongs to a connection needs no lock.
    for (int i = 0; i < std::max(1, options_.threads); ++i) threads_.push_back(std::make_unique<asio::io_context>(1));
    acceptor_.emplace(*threads_.front());
    signals_.emplace(*threads_.front());
    drain_end_.emplace(*threads_.front());
  }

  ~Impl() {
    // Workers first: what they return goes to the threads' contexts. Then these, with the connections in them, while
    // what connections share is still there.
    context_.ending = true;
    context_.quick.join();
    context_.bulk.join();
    context_.on_quiet = nullptr;
    drain_end_.reset();
    signals_.reset();
    acceptor_.reset();
    threads_.clear();
  }

  Status listen() {
    MILLRACE_CHECK_OK(read_keys());
    if (options_.tls_cert.empty() != options_.tls_key.empty()) return fail("TLS needs both a certificate and a key");
    if (!options_.tls_cert.empty()) {
      MILLRACE_TRY(tls_, make_tls_context(options_.tls_cert, options_.tls_key));
    }
    error_code ec;
    tcp::resolver resolver(*threads_.front());
    const auto found = resolver.resolve(options_.host, std::to_string(options_.port),
                                        tcp::resolver::passive | tcp::resolver::numeric_service, ec);
    if (ec || found.empty()) return fail("{}: {}", options_.host, ec ? ec.message() : "no address");
    const tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor_->open(endpoint.protocol(), ec);
    if (!ec) acceptor_->set_option(tcp::acceptor::reuse_address(true), ec);
    if (!ec) acceptor_->bind(endpoint, ec);
    if (!ec) acceptor_->listen(asio::socket_base::max_listen_connections, ec);
    if (ec) return fail("cannot listen on {}: {}", show(endpoint), ec.message());
    endpoint_ = acceptor_->local_endpoint(ec);
    if (ec) return fail("cannot listen on {}: {}", show(endpoint), ec.message());
    return Ok{};
  }

  [[nodiscard]] std::string url() const { return (tls_ ? "https://" : "http://") + show(endpoint_); }
  [[nodiscard]] std::uint16_t port() const { return endpoint_.port(); }

  std::int64_t run() {
    asio::co_spawn(*threads_.front(), accept(), asio::detached);
    if (options_.signals) {
      for (const int signal : {SIGTERM, SIGINT, SIGHUP}) signals_->add(signal);
      await_signal();
    }
    std::vector<std::thread> others;
    std::vector<asio::executor_work_guard<asio::io_context::executor_type>> guards;
    for (auto& thread : threads_) guards.push_back(asio::make_work_guard(*thread));
    for (std::size_t i = 1; i < threads_.size(); ++i) others.emplace_back([this, i] { threads_[i]->run(); });
    threads_.front()->run();
    for (std::thread& thread : others) thread.join();
    return cut_;
  }

  void drain() {
    asio::post(*threads_.front(), [this] { begin_drain(); });
  }

  void stop() {
    asio::post(*threads_.front(), [this] { end(); });
  }

  [[nodiscard]] bool draining() const { return context_.draining; }
  [[nodiscard]] std::int64_t connections() const {
    const std::lock_guard lock(mutex_);
    return static_cast<std::int64_t>(open_.size());
  }

 private:
  Status read_keys() {
    if (options_.api_key_file.empty()) return Ok{};
    MILLRACE_TRY(ApiKeys keys, ApiKeys::read(options_.api_key_file));
    context_.set_keys(std::make_shared<const ApiKeys>(std::move(keys)));
    return Ok{};
  }

  void say(const std::string& message) const {
    if (options_.on_message) options_.on_message(message);
  }

  void await_signal() {
    signals_->async_wait([this](const error_code& ec, int signal) {
      if (ec) return;
      if (signal == SIGHUP) {
        const Status status = read_keys();
        say(status.ok() ? "API keys read again" : "API keys stay as they were: " + status.error().message);
      } else if (!context_.draining) {
        begin_drain();
      } else if (options_.on_second_signal) {
        options_.on_second_signal();
      } else {
        end();
      }
      await_signal();
    });
  }

  asio::awaitable<void> accept() {
    std::size_t turn = 0;
    bool told = false;
    asio::steady_timer pause(*threads_.front());
    while (true) {
      asio::io_context& home = *threads_[turn++ % threads_.size()];
      auto [ec, socket] = co_await acceptor_->async_accept(home.get_executor(), kAwait);
      if (ec == asio::error::operation_aborted || !acceptor_->is_open()) co_return;
      if (!ec) {
        told = false;
        try {
          take(std::move(socket));
        } catch (const std::exception& e) {  // most likely memory is short: this client is lost, the next may not be
          say(std::string("connection dropped: ") + e.what());
        }
      } else if (ec != asio::error::connection_aborted) {
        // Mostly no descriptors are left. The connection still waits in the kernel, so trying again at once would spin.
        if (!std::exchange(told, true)) say("cannot accept connections for now: " + ec.message());
        pause.expires_after(kAcceptPause);
        (void)co_await pause.async_wait(kAwait);
      }
    }
  }

  void take(tcp::socket socket) {
    error_code ec;
    const tcp::endpoint peer = socket.remote_endpoint(ec);
    if (ec) return;  // has left already
    const std::int64_t open = connections();
    if (open >= options_.max_connections + (tls_ ? 0 : kMostRefusals)) return;
    const std::uint64_t id = next_id_++;
    const std::shared_ptr<void> lease(nullptr, [this, id](void*) {
      const std::lock_guard lock(mutex_);
      open_.erase(id);
    });
    const auto connection = std::make_shared<HttpConnection>(std::make_unique<Wire>(std::move(socket), tls_.get()),
                                                             context_, show(peer), lease);
    {
      const std::lock_guard lock(mutex_);
      open_.emplace(id, connection);
    }
    if (open >= options_.max_connections) {
      connection->refuse();
    } else {
      connection->serve();
    }
  }

  [[nodiscard]] std::vector<std::shared_ptr<HttpConnection>> open_connections() const {
    std::vector<std::shared_ptr<HttpConnection>> all;
    const std::lock_guard lock(mutex_);
    for (const auto& [id, weak] : open_) {
      if (auto connection = weak.lock()) all.push_back(std::move(connection));
    }
    return all;
  }

  void begin_drain() {
    if (context_.draining.exchange(true)) return;
    say("draining: new requests are refused, running ones finish");
    if (options_.on_drain) options_.on_drain();
    for (const auto& connection : open_connections()) connection->look();
    drain_end_->expires_after(std::chrono::duration_cast<std::chrono::steady_clock::duration>(options_.drain_timeout));
    drain_end_->async_wait([this](const error_code& ec) {
      if (!ec) end();
    });
    end_if_quiet();
  }

  void end_if_quiet() {
    if (context_.draining && context_.exchanges == 0) end();
  }

  void end() {
    cut_ = std::max<std::int64_t>(cut_, context_.exchanges);
    context_.draining = true;
    context_.ending = true;
    error_code ignored;
    acceptor_->close(ignored);
    for (auto& thread : threads_) thread->stop();
  }

  ServerOptions options_;
  HttpContext context_;
  std::shared_ptr<asio::ssl::context> tls_;
  mutable std::mutex mutex_;
  std::unordered_map<std::uint64_t, std::weak_ptr<HttpConnection>> open_;
  std::uint64_t next_id_ = 0;
  tcp::endpoint endpoint_;
  std::int64_t cut_ = 0;
  std::vector<std::unique_ptr<asio::io_context>> threads_;
  std::optional<tcp::acceptor> acceptor_;
  std::optional<asio::signal_set> signals_;
  std::optional<asio::steady_timer> drain_end_;
};

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() = default;

Result<std::unique_ptr<Server>> Server::listen(ServerOptions options, std::vector<HttpRoute> routes) {
  auto impl = std::make_unique<Impl>(std::move(options), std::move(routes));
  MILLRACE_CHECK_OK(impl->listen());
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

std::string Server::url() const {
  return impl_->url();
}
std::uint16_t Server::port() const {
  return impl_->port();
}
std::int64_t Server::run() {
  return impl_->run();
}
void Server::drain() {
  impl_->drain();
}
void Server::stop() {
  impl_->stop();
}
bool Server::draining() const {
  return impl_->draining();
}
std::int64_t Server::connections() const {
  return impl_->connections();
}

}  // namespace millrace
