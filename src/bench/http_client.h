// HTTP/1.1 to one server: requests one after another over connections that are kept open.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/ssl/context.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bench/connection.h"
#include "bench/exchange.h"
#include "core/result.h"

namespace millrace::bench {

/// All of it runs on the thread of `executor`, and the client outlives its requests.
class HttpClient {
 public:
  /// Errors: certificates that cannot be loaded, a key that no header can carry, a host that has no address. Blocks
  /// while the name is looked up.
  static Result<std::unique_ptr<HttpClient>> make(boost::asio::any_io_executor executor, const Target& target);

  /// A whole request, head and body, as bytes. `path` begins with a slash and comes after the URL's own.
  [[nodiscard]] std::string request(std::string_view method, std::string_view path, std::string_view body) const;

  /// Sends `request` and reads the answer. `sink` takes the body of a 200 whose type is text/event-stream, piece by
  /// piece; others are collected. Where a connection that was kept open turns out to be closed before any byte of the
  /// answer, the request is sent again on a new one.
  boost::asio::awaitable<Exchange> send(const std::string& request, const BodySink& sink);

  [[nodiscard]] std::int64_t connections() const { return connections_; }
  [[nodiscard]] std::int64_t retries() const { return retries_; }

 private:
  struct Attempt;

  HttpClient(boost::asio::any_io_executor executor, const Target& target);
  Status prepare();
  boost::asio::awaitable<void> attempt(Connection& connection, const std::string& request, const BodySink& sink,
                                       Attempt& attempt) const;
  boost::asio::awaitable<void> read_answer(Connection& connection, const BodySink& sink, Attempt& attempt) const;

  boost::asio::any_io_executor executor_;
  Target target_;
  std::chrono::nanoseconds timeout_;
  std::optional<boost::asio::ssl::context> tls_;
  Connection::Addresses addresses_;
  std::vector<std::shared_ptr<Connection>> idle_;
  std::int64_t connections_ = 0, retries_ = 0;
};

}  // namespace millrace::bench
