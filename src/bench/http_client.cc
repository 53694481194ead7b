#include "bench/http_client.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/error.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <charconv>
#include <utility>

namespace millrace::bench {

namespace asio = boost::asio;
namespace http = boost::beast::http;

namespace {

/// A body that is taken away piece by piece: nothing is reserved for what a header promises.
struct PieceBody {
  using value_type = std::string;

  class reader {
   public:
    template <bool IsRequest, typename Fields>
    reader(http::header<IsRequest, Fields>&, std::string& piece) : piece_(&piece) {}

    void init(const boost::optional<std::uint64_t>&, boost::system::error_code& error) { error = {}; }

    template <typename Buffers>
    std::size_t put(const Buffers& buffers, boost::system::error_code& error) {
      error = {};
      std::size_t taken = 0;
      for (auto it = asio::buffer_sequence_begin(buffers); it != asio::buffer_sequence_end(buffers); ++it) {
        const asio::const_buffer buffer = *it;
        piece_->append(static_cast<const char*>(buffer.data()), buffer.size());
        taken += buffer.size();
      }
      return taken;
    }

    void finish(boost::system::error_code& error) { error = {}; }

   private:
    std::string* piece_;
  };
};

using Parser = http::response_parser<PieceBody>;

/// Retry-After in seconds; its other form, a date, is not read.
std::optional<double> retry_after(std::string_view value) {
  double seconds = 0;
  const auto [end, code] = std::from_chars(value.data(), value.data() + value.size(), seconds);
  if (code != std::errc() || end != value.data() + value.size() || !(seconds >= 0 && seconds < 1e9)) return {};
  return seconds;
}

std::string_view text_of(boost::beast::string_view text) {
  return {text.data(), text.size()};
}

}  // namespace

/// One try to have an answer over one connection.
struct HttpClient::Attempt {
  Exchange exchange;
  bool streams = false;      // the sink takes the body
  bool began = false;        // a byte of the answer has arrived
  bool reusable = false;     // the connection can take another request
  bool ended_early = false;  // the connection was closed

  void fail_with(const Connection& connection, const char* name, std::string detail) {
    const bool late = connection.expired();
    exchange.failure = late ? "timeout" : name;
    exchange.detail = late ? "no complete answer in time" : std::move(detail);
  }
};

HttpClient::HttpClient(asio::any_io_executor executor, const Target& target)
    : executor_(std::move(executor)),
      target_(target),
      timeout_(static_cast<std::int64_t>(std::min(target.timeout_s, 1e8) * 1e9)) {}

Result<std::unique_ptr<HttpClient>> HttpClient::make(asio::any_io_executor executor, const Target& target) {
  std::unique_ptr<HttpClient> client(new HttpClient(std::move(executor), target));
  MILLRACE_CHECK_OK(client->prepare());
  return client;
}

Status HttpClient::prepare() {
  const std::string& key = target_.api_key;
  if (!std::all_of(key.begin(), key.end(), [](char c) { return c > 0x20 && c < 0x7f; })) {
    return fail("the API key has characters that no header can carry");
  }
  boost::system::error_code error;
  if (target_.url.tls) {
    tls_.emplace(asio::ssl::context::tls_client);
    if (!target_.verify) {
      tls_->set_verify_mode(asio::ssl::verify_none);
    } else {
      tls_->set_verify_mode(asio::ssl::verify_peer);
      if (target_.ca_file.empty()) {
        tls_->set_default_verify_paths(error);
      } else {
        tls_->load_verify_file(target_.ca_file, error);
      }
      if (error) return fail("{}: certificates cannot be loaded: {}", target_.ca_file, error.message());
    }
  }
  asio::ip::tcp::resolver resolver(executor_);
  addresses_ = resolver.resolve(target_.url.host, target_.url.port, error);
  if (error) return fail("{}: {}", target_.url.host, error.message());
  return Ok{};
}

std::string HttpClient::request(std::string_view method, std::string_view path, std::string_view body) const {
  std::string text = fmt::format("{} {}{} HTTP/1.1\r\nHost: {}\r\nUser-Agent: millrace-bench\r\nAccept: */*\r\n",
                                 method, target_.url.path, path, target_.url.authority());
  if (!target_.api_key.empty()) text += fmt::format("Authorization: Bearer {}\r\n", target_.api_key);
  if (!body.empty()) text += fmt::format("Content-Type: application/json\r\nContent-Length: {}\r\n", body.size());
  text += "\r\n";
  return text += body;
}

asio::awaitable<Exchange> HttpClient::send(const std::string& request, const BodySink& sink) {
  while (true) {
    std::shared_ptr<Connection> connection;
    const bool kept = !idle_.empty();
    if (kept) {
      connection = std::move(idle_.back());
      idle_.pop_back();
    } else {
      connection = std::make_shared<Connection>(executor_, tls_ ? &*tls_ : nullptr);
    }
    connection->set_deadline(timeout_);
    Attempt attempt;
    if (!kept) {
      ++connections_;
      Connection::Error error;
      const char* stage = "";
      co_await connection->open(addresses_, target_.url.host, error, stage);
      if (error) attempt.fail_with(*connection, stage, fmt::format("{}: {}", target_.url.authority(), error.message()));
    }
    if (attempt.exchange.failure.empty()) co_await this->attempt(*connection, request, sink, attempt);
    connection->clear_deadline();
    if (kept && attempt.ended_early && !attempt.began) {
      ++retries_;
      continue;
    }
    if (attempt.reusable) idle_.push_back(std::move(connection));
    co_return std::move(attempt.exchange);
  }
}

asio::awaitable<void> HttpClient::attempt(Connection& connection, const std::string& request, const BodySink& sink,
                                          Attempt& attempt) const {
  Connection::Error error;
  co_await connection.write(request, error);
  if (error) {
    // A server that refuses early may close before it has read all; its answer is then worth more than this error.
    Connection::Error unread;
    co_await connection.read(unread);
    if (unread && unread != asio::error::eof) {
      attempt.ended_early = !connection.expired();
      attempt.fail_with(connection, "connection_closed", fmt::format("while sending: {}", error.message()));
      co_return;
    }
  }
  co_await read_answer(connection, sink, attempt);
}

asio::awaitable<void> HttpClient::read_answer(Connection& connection, const BodySink& sink, Attempt& attempt) const {
  constexpr std::size_t kMaxCollected = std::size_t{1} << 20;
  constexpr std::size_t kMaxUnparsed = std::size_t{1} << 18;
  Exchange& exchange = attempt.exchange;
  Parser parser;
  parser.eager(true);
  parser.body_limit(boost::none);
  parser.header_limit(64 << 10);
  bool ending = false;
  while (!parser.is_done()) {
    Connection::Error error;
    if (connection.buffer().size() == 0 || attempt.began) {
      co_await connection.read(error);
    }
    Connection::Error parse_error;
    if (error == asio::error::eof && attempt.began) {
      parser.put_eof(parse_error);
    } else if (!error) {
      attempt.began = true;
      const std::size_t used = parser.put(connection.buffer().data(), parse_error);
      connection.buffer().consume(used);
      if (parse_error == http::error::need_more) parse_error = {};
    }
    if (parser.is_header_done() && exchange.status == 0) {
      exchange.status = static_cast<int>(parser.get().result_int());
      exchange.content_type = std::string(text_of(parser.get()[http::field::content_type]));
      exchange.retry_after_s = retry_after(text_of(parser.get()[http::field::retry_after]));
      attempt.streams = exchange.status == 200 && exchange.content_type.starts_with("text/event-stream");
    }
    std::string& piece = parser.get().body();
    if (attempt.streams && !piece.empty()) {
      const BodyDemand demand = sink(piece);
      if (demand == BodyDemand::stop) co_return;
      if (demand == BodyDemand::end && !std::exchange(ending, true)) {
        connection.set_deadline(std::min<std::chrono::nanoseconds>(timeout_, std::chrono::seconds(1)));
      }
    } else if (exchange.body.size() < kMaxCollected) {
      exchange.body.append(piece, 0, kMaxCollected - exchange.body.size());
    }
    piece.clear();
    if (parse_error && parse_error != http::error::partial_message) {
      attempt.fail_with(connection, "protocol", fmt::format("not HTTP: {}", parse_error.message()));
      co_return;
    }
    if (parse_error || (error && !parser.is_done())) {
      attempt.ended_early = !connection.expired();
      attempt.fail_with(connection, "connection_closed",
                        error == asio::error::eof ? "the connection ended before the answer did" : error.message());
      co_return;
    }
    if (connection.buffer().size() > kMaxUnparsed) {
      attempt.fail_with(connection, "protocol", "not HTTP: a line without an end");
      co_return;
    }
  }
  attempt.reusable = parser.get().keep_alive() && connection.buffer().size() == 0;
}

}  // namespace millrace::bench
