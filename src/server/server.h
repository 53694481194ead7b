// Server: listens, gives connections to its threads, ends in good order.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/result.h"
#include "server/http_connection.h"

namespace millrace {

struct ServerOptions {
  std::string host = "127.0.0.1";  // a name or an address
  std::uint16_t port = 8000;       // 0: any free one
  int threads = 1;                 // that serve connections
  std::int64_t max_connections = 4096;
  HttpLimits limits;
  HttpLimits::Seconds drain_timeout{60};
  CorsOrigins cors;
  std::string api_key_file;       // empty: anybody may ask
  std::string tls_cert, tls_key;  // PEM files; both or none
  WhoAsks who;                    // asked before the keys; may be empty

  bool signals = false;                    // run() drains on SIGTERM and SIGINT, and reads the keys again on SIGHUP
  std::function<void()> on_drain;          // draining has begun; on one of the server's threads
  std::function<void()> on_second_signal;  // while draining; empty: stop()
  std::function<void(const HttpRecord&)>
      on_exchange;  // each exchange; on any of the server's threads, at once on several
  std::function<void(const std::string&)> on_message;  // one line for the log; likewise
};

/// Handlers and answers must be usable until the server is destroyed.
class Server {
 public:
  /// Listens at once; nothing is answered before run(). Errors: the address is taken or unknown; keys or certificates
  /// that cannot be read.
  static Result<std::unique_ptr<Server>> listen(ServerOptions options, std::vector<HttpRoute> routes);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  /// "http://127.0.0.1:8000", with the port that was found.
  [[nodiscard]] std::string url() const;
  [[nodiscard]] std::uint16_t port() const;

  /// Serves until it is drained or stopped; the caller's thread is one of the server's. Once. The number of exchanges
  /// that were cut.
  std::int64_t run();

  /// Any thread. From now on only open routes are answered, others get 503, and connections end after their answer;
  /// run() returns when no exchange is under way, at the latest after drain_timeout. It still accepts meanwhile: who
  /// looks at /ready is to be told, and who comes late gets an answer instead of a reset.
  void drain();
  /// Any thread. Ends now.
  void stop();

  [[nodiscard]] bool draining() const;
  [[nodiscard]] std::int64_t connections() const;  // open

 private:
  class Impl;
  explicit Server(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace millrace
