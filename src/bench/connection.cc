#include "bench/connection.h"

#include <boost/asio/connect.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/ssl/error.hpp>
#include <boost/asio/ssl/host_name_verification.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <utility>

namespace millrace::bench {

namespace asio = boost::asio;
using asio::redirect_error;
using asio::use_awaitable;

Connection::Connection(asio::any_io_executor executor, asio::ssl::context* tls) : socket_(executor), timer_(executor) {
  if (tls != nullptr) tls_ = std::make_unique<asio::ssl::stream<asio::ip::tcp::socket&>>(socket_, *tls);
}

asio::awaitable<void> Connection::open(const Addresses& addresses, const std::string& host, Error& error,
                                       const char*& stage) {
  stage = "connect";
  co_await asio::async_connect(socket_, addresses, redirect_error(use_awaitable, error));
  if (error) co_return;
  Error ignored;  // a socket without this option is slower, not wrong
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  if (tls_ == nullptr) co_return;
  stage = "tls";
  Error no_address;
  asio::ip::make_address(host, no_address);
  // Server name indication is for names only (RFC 6066, section 3).
  if (no_address && SSL_set_tlsext_host_name(tls_->native_handle(), host.c_str()) != 1) {
    error = asio::error::invalid_argument;
    co_return;
  }
  tls_->set_verify_callback(asio::ssl::host_name_verification(host), error);
  if (error) co_return;
  co_await tls_->async_handshake(asio::ssl::stream_base::client, redirect_error(use_awaitable, error));
}

asio::awaitable<void> Connection::write(std::string_view bytes, Error& error) {
  const asio::const_buffer buffer(bytes.data(), bytes.size());
  if (tls_ == nullptr) {
    co_await asio::async_write(socket_, buffer, redirect_error(use_awaitable, error));
  } else {
    co_await asio::async_write(*tls_, buffer, redirect_error(use_awaitable, error));
  }
}

asio::awaitable<void> Connection::read(Error& error) {
  constexpr std::size_t kRead = 4096;  // thousands of streams of small chunks: little memory each
  const auto space = buffer_.prepare(kRead);
  std::size_t got = 0;
  if (tls_ == nullptr) {
    got = co_await socket_.async_read_some(space, redirect_error(use_awaitable, error));
  } else {
    got = co_await tls_->async_read_some(space, redirect_error(use_awaitable, error));
  }
  buffer_.commit(got);
  if (error == asio::ssl::error::stream_truncated) error = asio::error::eof;
}

void Connection::set_deadline(std::chrono::nanoseconds time) {
  const std::uint64_t deadline = ++deadline_;
  expired_ = false;
  timer_.expires_after(time);
  timer_.async_wait([weak = weak_from_this(), deadline](const Error& error) {
    const std::shared_ptr<Connection> self = weak.lock();
    if (error || self == nullptr || self->deadline_ != deadline) return;
    self->expired_ = true;
    Error ignored;  // the socket is given up in any case
    self->socket_.close(ignored);
  });
}

void Connection::clear_deadline() {
  ++deadline_;
  timer_.cancel();
}

}  // namespace millrace::bench
