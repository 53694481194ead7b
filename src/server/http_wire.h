// Wire: the bytes of one connection, plain or TLS, so that nothing above it needs to know which.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/system/error_code.hpp>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "core/result.h"

namespace boost::asio::ssl {
class context;
}

namespace millrace {

namespace asio = boost::asio;
using boost::system::error_code;

/// TLS 1.2 and newer with a PEM certificate chain and key. Error: which file, and what OpenSSL says of it.
Result<std::shared_ptr<asio::ssl::context>> make_tls_context(const std::string& certificate, const std::string& key);

/// Used from its socket's executor only. One read and one write may be under way at once.
class Wire {
 public:
  /// `tls` may be null; it must outlive the wire. Sets TCP_NODELAY, and bounds what the kernel keeps unsent.
  Wire(asio::ip::tcp::socket socket, asio::ssl::context* tls);
  ~Wire();
  Wire(const Wire&) = delete;
  Wire& operator=(const Wire&) = delete;

  /// Of TLS; at once without.
  asio::awaitable<error_code> handshake();
  using Transfer = std::pair<error_code, std::size_t>;
  asio::awaitable<Transfer> read_some(asio::mutable_buffer buffer);
  /// At least one byte, or an error.
  asio::awaitable<Transfer> write_some(std::string_view data);
  /// What the socket takes without waiting: 0 where it would have to wait, and always with TLS.
  std::size_t write_now(std::string_view data, error_code& ec);
  /// Says that nothing more comes; with TLS also to the peer's TLS.
  asio::awaitable<void> finish();
  /// Closes; whatever is under way ends with an error. May be called twice.
  void close();

  [[nodiscard]] asio::any_io_executor executor();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace millrace
