#include "server/http_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <stdexcept>

namespace millrace::test {

namespace {

constexpr auto kPatience = std::chrono::seconds(10);

}  // namespace

bool eventually(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

RawClient::RawClient(std::uint16_t port, int receive_buffer) {
  fd_ = ::socket(AF_INET, SOCK_STREAM, 0);
  const timeval patience{kPatience.count(), 0};
  ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  ::setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
  if (receive_buffer > 0) ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) close();
}

RawClient::RawClient(RawClient&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), pending_(std::move(other.pending_)) {}

RawClient::~RawClient() {
  close();
}

void RawClient::close() {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

void RawClient::reset() {
  const linger now{1, 0};
  ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
  close();
}

void RawClient::end_of_input() {
  ::shutdown(fd_, SHUT_WR);
}

bool RawClient::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(sent));
  }
  return true;
}

std::string RawClient::receive() {
  std::string buffer(64 << 10, '\0');
  const ssize_t size = ::recv(fd_, buffer.data(), buffer.size(), 0);
  buffer.resize(size > 0 ? static_cast<std::size_t>(size) : 0);
  return buffer;
}

std::string RawClient::receive_until(std::string_view end) {
  while (pending_.find(end) == std::string::npos) {
    const std::string more = receive();
    if (more.empty()) return std::exchange(pending_, {});
    pending_ += more;
  }
  return take(pending_.find(end) + end.size());
}

std::string RawClient::receive_all() {
  std::string all = std::exchange(pending_, {});
  for (std::string more = receive(); !more.empty(); more = receive()) all += more;
  return all;
}

std::string RawClient::take(std::size_t size) {
  while (pending_.size() < size) {
    const std::string more = receive();
    if (more.empty()) return std::exchange(pending_, {});
    pending_ += more;
  }
  std::string taken = pending_.substr(0, size);
  pending_.erase(0, size);
  return taken;
}

std::string RawClient::take_line() {
  std::string line = receive_until("\r\n");
  if (line.size() >= 2) line.resize(line.size() - 2);
  return line;
}

RawClient::Response RawClient::response(bool head) {
  Response response;
  const std::string status = take_line();
  if (!status.starts_with("HTTP/1.1 ")) return response;
  response.status = std::stoi(status.substr(9));
  for (std::string line = take_line(); !line.empty(); line = take_line()) {
    const std::size_t colon = line.find(": ");
    std::string name = line.substr(0, colon);
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
    response.headers[name] = line.substr(colon + 2);
  }
  if (head || response.status == 204) return response;
  if (response.headers.contains("content-length")) {
    response.body = take(std::stoul(response.headers["content-length"]));
  } else if (response.headers["transfer-encoding"] == "chunked") {
    while (const std::size_t size = std::stoul(take_line(), nullptr, 16)) {
      response.body += take(size);
      take(2);
    }
    take(2);
  } else {
    response.body = receive_all();
  }
  return response;
}

TestServer::TestServer(ServerOptions options, std::vector<HttpRoute> routes) {
  options.port = 0;
  options.on_exchange = [this](const HttpRecord& record) {
    const std::lock_guard lock(mutex_);
    records_.push_back(record);
  };
  auto server = Server::listen(std::move(options), std::move(routes));
  if (!server.ok()) throw std::runtime_error(server.error().message);
  server_ = std::move(server).value();
  thread_ = std::thread([this] {
    const std::int64_t cut = server_->run();
    const std::lock_guard lock(mutex_);
    cut_ = cut;
    ended_ = true;
    changed_.notify_all();
  });
}

TestServer::~TestServer() {
  server_->stop();
  thread_.join();
}

RawClient::Response TestServer::ask(const std::string& request) const {
  RawClient client = connect();
  client.send(request);
  return client.response();
}

std::vector<HttpRecord> TestServer::records() const {
  const std::lock_guard lock(mutex_);
  return records_;
}

bool TestServer::ended() {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, kPatience, [this] { return ended_; });
}

class Feed::Answer : public HttpAnswer {
 public:
  explicit Answer(std::shared_ptr<Feed> feed) : feed_(std::move(feed)) {}
  ~Answer() override { cancel(); }

  [[nodiscard]] bool is_stream() const override { return true; }

  std::optional<HttpReply> start(std::function<void()> wake) override {
    const std::lock_guard lock(feed_->mutex_);
    feed_->wake_ = std::move(wake);
    feed_->started_ = true;
    feed_->changed_.notify_all();
    return std::nullopt;
  }

  Piece pull() override {
    const std::lock_guard lock(feed_->mutex_);
    ++feed_->pulls_;
    done_ = feed_->finished_;
    return {std::exchange(feed_->bytes_, {}), std::nullopt, done_};
  }

  void cancel() override {
    const std::lock_guard lock(feed_->mutex_);
    feed_->wake_ = nullptr;
    if (std::exchange(done_, true)) return;
    feed_->cancelled_ = true;
    feed_->changed_.notify_all();
  }

  [[nodiscard]] TokenUse use() const override { return {3, 2, 1}; }

 private:
  std::shared_ptr<Feed> feed_;
  bool done_ = false;
};

std::unique_ptr<HttpAnswer> Feed::answer(std::shared_ptr<Feed> self) {
  return std::make_unique<Answer>(std::move(self));
}

void Feed::push(std::string_view bytes) {
  const std::lock_guard lock(mutex_);
  bytes_ += bytes;
  if (wake_) wake_();
}

void Feed::finish() {
  const std::lock_guard lock(mutex_);
  finished_ = true;
  if (wake_) wake_();
}

template <typename Condition>
bool Feed::wait(Condition condition) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, kPatience, condition);
}

bool Feed::wait_started() {
  return wait([this] { return started_; });
}

bool Feed::wait_cancelled() {
  return wait([this] { return cancelled_; });
}

bool Feed::cancelled() const {
  const std::lock_guard lock(mutex_);
  return cancelled_;
}

int Feed::pulls() const {
  const std::lock_guard lock(mutex_);
  return pulls_;
}

std::vector<HttpRoute> test_routes(std::shared_ptr<Feed> feed) {
  using Method = HttpRoute::Method;
  std::vector<HttpRoute> routes;
  routes.push_back({Method::get, "/hello", false, [](const HttpRequest&) -> HttpOutcome {
                      return HttpReply{.content_type = "text/plain", .body = "hi"};
                    }});
  routes.push_back(
      {Method::get, "/ready", true, [](const HttpRequest&) -> HttpOutcome { return HttpReply{.body = "ready"}; }});
  routes.push_back({Method::get, "/items/{id}", false,
                    [](const HttpRequest& request) -> HttpOutcome { return HttpReply{.body = request.parameter}; }});
  routes.push_back({Method::post, "/echo", false,
                    [](const HttpRequest& request) -> HttpOutcome { return HttpReply{.body = request.body}; }});
  routes.push_back({Method::post, "/tenant", false,
                    [](const HttpRequest& request) -> HttpOutcome { return HttpReply{.body = request.tenant}; }});
  routes.push_back({Method::post, "/throw", false,
                    [](const HttpRequest&) -> HttpOutcome { throw std::runtime_error("secret of the inside"); }});
  if (feed) {
    routes.push_back(
        {Method::post, "/stream", false, [feed](const HttpRequest&) -> HttpOutcome { return feed->answer(feed); }});
  }
  return routes;
}

std::string post(std::string_view path, std::string_view body, std::string_view headers) {
  return fmt::format("POST {} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n{}\r\n{}", path, body.size(), headers,
                     body);
}

std::string get(std::string_view path, std::string_view headers, std::string_view method) {
  return fmt::format("{} {} HTTP/1.1\r\nHost: test\r\n{}\r\n", method, path, headers);
}

}  // namespace millrace::test
