// What the tests of the server share: a server on a thread of its own, and a client that writes and reads plain bytes.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "server/server.h"

namespace millrace::test {

/// A blocking TCP connection to 127.0.0.1. Everything gives up after ten seconds.
class RawClient {
 public:
  /// `receive_buffer` > 0: SO_RCVBUF, set before connecting.
  explicit RawClient(std::uint16_t port, int receive_buffer = 0);
  ~RawClient();
  RawClient(RawClient&& other) noexcept;
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  [[nodiscard]] bool connected() const { return fd_ >= 0; }
  /// False: the server has closed.
  bool send(std::string_view bytes);
  /// What comes next, at most 64 KiB; empty: closed, broken or nothing for ten seconds.
  std::string receive();
  std::string receive_until(std::string_view end);
  std::string receive_all();
  void close();
  void reset();         // closes with RST
  void end_of_input();  // half-closes
  [[nodiscard]] int fd() const { return fd_; }

  struct Response {
    int status = 0;
    std::map<std::string, std::string> headers;  // names in lower case
    std::string body;                            // chunks put together
  };
  /// One response; bytes behind it are kept for the next call. `head`: of a HEAD request. Status 0: none came.
  Response response(bool head = false);

 private:
  std::string take(std::size_t size);
  std::string take_line();

  int fd_ = -1;
  std::string pending_;
};

/// Serves on a free port until it is destroyed.
class TestServer {
 public:
  TestServer(ServerOptions options, std::vector<HttpRoute> routes);
  ~TestServer();

  Server& operator*() { return *server_; }
  Server* operator->() { return server_.get(); }
  [[nodiscard]] RawClient connect() const { return RawClient(server_->port()); }
  /// One request on a connection of its own.
  [[nodiscard]] RawClient::Response ask(const std::string& request) const;
  /// Exchanges so far, in the order of their ends.
  [[nodiscard]] std::vector<HttpRecord> records() const;
  /// Waits for run() to return. False: it does not within ten seconds.
  bool ended();
  [[nodiscard]] std::int64_t cut() const { return cut_; }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<HttpRecord> records_;
  bool ended_ = false;
  std::int64_t cut_ = -1;
  std::unique_ptr<Server> server_;
  std::thread thread_;
};

/// A stream that a test feeds. Held by the test and by the answers made of it.
class Feed {
 public:
  /// An answer that is this feed; one at a time.
  std::unique_ptr<HttpAnswer> answer(std::shared_ptr<Feed> self);

  void push(std::string_view bytes);
  void finish();
  bool wait_started();
  bool wait_cancelled();
  [[nodiscard]] bool cancelled() const;
  [[nodiscard]] int pulls() const;

 private:
  class Answer;
  template <typename Condition>
  bool wait(Condition condition);

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> wake_;
  std::string bytes_;
  bool started_ = false, finished_ = false, cancelled_ = false;
  int pulls_ = 0;
};

/// GET /hello, GET /ready (open), GET /items/{id} (its parameter), POST /echo (the body), POST /tenant, POST /throw,
/// and POST /stream (the feed, if there is one).
std::vector<HttpRoute> test_routes(std::shared_ptr<Feed> feed = nullptr);

/// "POST path" with a Host, a Content-Length, the body, and `headers` (each ended by CRLF).
std::string post(std::string_view path, std::string_view body, std::string_view headers = {});
std::string get(std::string_view path, std::string_view headers = {}, std::string_view method = "GET");

/// Looks every millisecond, for ten seconds at most.
bool eventually(const std::function<bool()>& condition);

}  // namespace millrace::test
