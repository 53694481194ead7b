// One TCP connection, with TLS or without. Everything here runs on the one thread of its executor.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <chrono>
#include <memory>
#include <string>
#include <string_view>

namespace millrace::bench {

/// A connection and its deadline. Operations report through `error`; one that the deadline cut off reports an error
/// too, and expired() is true.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  using Error = boost::system::error_code;
  using Addresses = boost::asio::ip::tcp::resolver::results_type;

  /// `tls`: null for plain HTTP; it outlives the connection.
  Connection(boost::asio::any_io_executor executor, boost::asio::ssl::context* tls);

  /// Connects to the first address that answers, then negotiates TLS with `host` as the name to be proved where the
  /// context verifies. `stage` says what failed: "connect" or "tls".
  boost::asio::awaitable<void> open(const Addresses& addresses, const std::string& host, Error& error,
                                    const char*& stage);

  boost::asio::awaitable<void> write(std::string_view bytes, Error& error);

  /// Appends some bytes to buffer(). At the end of the stream the error is asio's eof, also where TLS was cut off
  /// without a farewell: HTTP's own framing tells what is missing.
  boost::asio::awaitable<void> read(Error& error);

  boost::beast::flat_buffer& buffer() { return buffer_; }

  /// Closes the connection after `time`, unless the deadline is moved or taken away before.
  void set_deadline(std::chrono::nanoseconds time);
  void clear_deadline();
  [[nodiscard]] bool expired() const { return expired_; }

 private:
  boost::asio::ip::tcp::socket socket_;
  std::unique_ptr<boost::asio::ssl::stream<boost::asio::ip::tcp::socket&>> tls_;
  boost::asio::steady_timer timer_;
  std::uint64_t deadline_ = 0;  // which deadline the timer stands for: an older one may already be on its way
  bool expired_ = false;
  boost::beast::flat_buffer buffer_;
};

}  // namespace millrace::bench
