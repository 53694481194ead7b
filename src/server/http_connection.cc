#include "server/http_connection.h"

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <exception>
#include <new>
#include <utility>

namespace millrace {

namespace {

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

constexpr std::size_t kInputBytes = 64 << 10;  // read ahead of what is being answered
constexpr std::size_t kSmallRead = 2 << 10;    // a connection that waits holds a buffer of this size
constexpr std::size_t kBulkBody = 64 << 10;    // from here on a body goes to the bulk thread
constexpr std::uint64_t kReadPast = 64 << 10;  // a refused body of this size is read, to keep the connection
constexpr double kSlowestBytesPerSecond = 4 << 10;
constexpr std::chrono::seconds kLinger{2};
constexpr int kClientGone = 499;

}  // namespace

std::shared_ptr<const ApiKeys> HttpContext::keys() const {
  const std::lock_guard lock(mutex_);
  return keys_;
}

void HttpContext::set_keys(std::shared_ptr<const ApiKeys> keys) {
  const std::lock_guard lock(mutex_);
  keys_ = std::move(keys);
}

/// One request and what has been decided about it.
struct HttpConnection::Exchange {
  explicit Exchange(HttpContext& shared)
      : context(&shared), parser(shared.limits.header_bytes, shared.limits.body_bytes), began(Clock::now()) {
    ++context->exchanges;
  }
  ~Exchange() {
    context->body_bytes -= body_bytes;
    if (--context->exchanges == 0 && context->draining && context->on_quiet) context->on_quiet();
  }
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  HttpContext* context;
  HttpParser parser;
  Clock::time_point began;
  HttpRequest request;
  RouteMatch match;
  HttpRecord record;
  std::optional<HttpFault> fault;
  std::uint64_t body_bytes = 0;  // counted in the context
  bool close = false;            // the connection ends after this
};

HttpConnection::HttpConnection(std::unique_ptr<Wire> wire, HttpContext& context, std::string peer,
                               std::shared_ptr<void> lease)
    : lease_(std::move(lease)),
      wire_(std::move(wire)),
      context_(&context),
      peer_(std::move(peer)),
      executor_(wire_->executor()),
      wake_(executor_),
      room_(executor_),
      write_end_(executor_) {}

HttpConnection::~HttpConnection() = default;

void HttpConnection::spawn(Awaitable<void> task) {
  asio::co_spawn(executor_, std::move(task), [self = shared_from_this()](const std::exception_ptr& error) {
    if (!error) return;
    self->wire_->close();  // most likely memory is short; others go on
    try {
      std::rethrow_exception(error);
    } catch (const std::exception& e) {
      if (self->context_->on_failure) self->context_->on_failure(std::string("connection closed: ") + e.what());
    }
  });
}

void HttpConnection::serve() {
  spawn(run(shared_from_this()));
}

void HttpConnection::refuse() {
  spawn(run_refusal(shared_from_this()));
}

void HttpConnection::look() {
  asio::post(executor_, [self = shared_from_this()] { self->notify(); });
}

void HttpConnection::notify() {
  wake_.cancel();
}

HttpConnection::Clock::time_point HttpConnection::after(HttpLimits::Seconds seconds) {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(seconds);
}

/// Returns at the deadline or when notified; the caller looks which.
HttpConnection::Awaitable<void> HttpConnection::sleep_until(Clock::time_point deadline) {
  wake_.expires_at(deadline);
  (void)co_await wake_.async_wait(kAwait);
}

HttpConnection::Awaitable<void> HttpConnection::run(Self self) {
  wake_.expires_at(after(context_->limits.header_timeout));
  wake_.async_wait([self](const error_code& ec) {
    if (!ec) self->wire_->close();
  });
  const error_code ec = co_await wire_->handshake();
  wake_.cancel();
  if (!ec) {
    spawn(pump(self));
    bool first = true;
    while (co_await request_begins(first)) {
      first = false;
      if (co_await exchange()) continue;
      co_await linger();
      break;
    }
  }
  closed_ = true;
  wire_->close();
  room_.cancel();
}

HttpConnection::Awaitable<void> HttpConnection::run_refusal(Self self) {
  spawn(pump(self));
  {
    Exchange x(*context_);
    x.close = true;
    x.record.method = x.record.path = "-";
    x.record.id = new_request_id();
    HttpReply reply = error_reply(503, "Too many connections are open; try again later.", "server_error", "overloaded");
    reply.headers.emplace_back("Retry-After", "1");
    co_await send_reply(x, std::move(reply));
    record(x);
  }
  co_await linger();
  closed_ = true;
  wire_->close();
  room_.cancel();
}

/// Reads into input_ for as long as the connection lives.
HttpConnection::Awaitable<void> HttpConnection::pump([[maybe_unused]] Self self) {
  std::string buffer(kSmallRead, '\0');
  while (!closed_) {
    if (input_.size() >= kInputBytes) {
      room_.expires_at(Clock::time_point::max());
      (void)co_await room_.async_wait(kAwait);
      continue;
    }
    const auto [ec, size] = co_await wire_->read_some(asio::buffer(buffer));
    if (ec) break;
    input_.append(buffer, 0, size);
    notify();
    // Grown while much comes at once, small again when the connection rests.
    const std::size_t next = size == buffer.size() ? std::min(2 * size, kInputBytes) : kSmallRead;
    if (next > buffer.size() || (next < buffer.size() && size <= kSmallRead)) buffer = std::string(next, '\0');
  }
  gone_ = true;
  if (streaming_) wire_->close();
  notify();
}

/// Waits for the first byte of a request. False: none will come.
HttpConnection::Awaitable<bool> HttpConnection::request_begins(bool first) {
  const auto deadline = after(first ? context_->limits.header_timeout : context_->limits.idle_timeout);
  while (true) {
    // Empty lines before a request line are to be ignored (RFC 9112, 2.2).
    input_.erase(0, input_.find_first_not_of("\r\n"));
    if (!input_.empty()) co_return true;
    if (input_.capacity() > kSmallRead) std::string().swap(input_);
    room_.cancel();
    if (gone_ || (context_->draining && !first) || Clock::now() >= deadline) co_return false;
    co_await sleep_until(deadline);
  }
}

/// Gives the parser what has come.
HttpParser::Progress HttpConnection::feed(Exchange& x, std::optional<HttpFault>& fault) {
  std::size_t consumed = 0;
  const HttpParser::Progress progress = x.parser.put(input_, consumed, fault);
  input_.erase(0, consumed);
  room_.cancel();
  // A parser that wants more than fits (a chunk's extensions without end) will not get it.
  if (progress == HttpParser::Progress::need_more && !fault && input_.size() >= kInputBytes) {
    fault = HttpFault{400, "malformed HTTP request: a line without end"};
  }
  return progress;
}

/// False: the client left. Else the head is there, or x.fault says why not.
HttpConnection::Awaitable<bool> HttpConnection::read_head(Exchange& x) {
  const auto deadline = after(context_->limits.header_timeout);
  while (feed(x, x.fault) == HttpParser::Progress::need_more && !x.fault) {
    if (gone_) co_return false;
    if (Clock::now() >= deadline) {
      x.fault = HttpFault{408, "the request's header did not arrive in time"};
      break;
    }
    co_await sleep_until(deadline);
  }
  co_return true;
}

/// Reads the body, to keep it or only past it. False: the client left. x.fault: what is wrong with it.
HttpConnection::Awaitable<bool> HttpConnection::read_body(Exchange& x, bool keep) {
  const HttpHead& head = x.parser.head();
  if (!keep) {
    // Reading past a body keeps the connection, but not at any price.
    if (head.expects_continue || head.chunked || head.content_length.value_or(0) > kReadPast) {
      x.close = x.close || head.has_body();
      co_return true;
    }
    x.parser.discard_body();
  }
  if (head.expects_continue && head.has_body() && input_.empty()) {
    if (!co_await send(x, "HTTP/1.1 100 Continue\r\n\r\n")) co_return false;
  }
  const auto began = Clock::now();
  while (feed(x, x.fault) != HttpParser::Progress::complete && !x.fault) {
    const std::uint64_t size = x.parser.body().size();
    context_->body_bytes += size - x.body_bytes;
    x.body_bytes = size;
    if (context_->body_bytes > context_->limits.all_bodies_bytes) {
      x.fault = HttpFault{503, "too many large requests are under way; try again later"};
      break;
    }
    if (gone_) co_return false;
    const auto allowed =
        context_->limits.header_timeout + HttpLimits::Seconds(static_cast<double>(size) / kSlowestBytesPerSecond);
    const auto deadline = began + std::chrono::duration_cast<Clock::duration>(allowed);
    if (Clock::now() >= deadline) {
      x.fault = HttpFault{408, "the request's body did not arrive in time"};
      break;
    }
    co_await sleep_until(deadline);
  }
  co_return true;
}

/// What the head alone decides: paths and methods that do not exist, keys, draining. Nothing: the route is to answer.
std::optional<HttpReply> HttpConnection::refusal(Exchange& x) const {
  const HttpHead& head = x.parser.head();
  const auto path = target_path(head.target);
  if (!path) return error_reply(400, "the request's target is no path");
  x.request.path = *path;
  x.request.query = target_query(head.target);
  x.request.content_type = head.content_type;
  x.match = find_route(context_->routes, head.method, *path);
  if (head.method == "OPTIONS" && (x.match.route != nullptr || *path == "*")) {
    return options_reply(x.match.allow(), context_->cors, head.origin, head.asks_method, head.asks_headers);
  }
  // Who may not ask is not told either what there is to ask for.
  if (x.match.route == nullptr || !x.match.route->open) {
    auto who = context_->who ? context_->who(head.authorization) : std::nullopt;
    if (who) {
      if (auto* refused = std::get_if<HttpReply>(&*who)) return std::move(*refused);
      x.request.tenant = std::get<std::string>(std::move(*who));
    } else if (const auto keys = context_->keys()) {
      auto tenant = keys->tenant(head.authorization);
      if (!tenant) return no_key_reply(head.authorization);
      x.request.tenant = std::move(*tenant);
    }
  }
  if (!x.match.method_fits) return no_route_reply(x.match, head.method, *path);
  if (context_->draining && !x.match.route->open) {
    HttpReply reply = error_reply(503, "The server is shutting down.", "server_error", "service_unavailable");
    reply.headers.emplace_back("Retry-After", "5");
    return reply;
  }
  return std::nullopt;
}

/// The route's own answer.
HttpConnection::Awaitable<HttpOutcome> HttpConnection::handle(Exchange& x) {
  x.request.parameter = std::move(x.match.parameter);
  const HttpRoute* route = x.match.route;
  const auto call = [route, context = context_](const HttpRequest& request) -> HttpOutcome {
    try {
      return route->handle(request);
    } catch (const std::bad_alloc&) {
      return error_reply(503, "Too little memory for this request.", "server_error", "overloaded");
    } catch (const std::exception& e) {
      if (context->on_failure) context->on_failure(route->path + ": " + e.what());
      return error_reply(500, "The server failed at this request.", "server_error");
    }
  };
  if (route->method == HttpRoute::Method::get) co_return call(x.request);

  x.request.body = std::move(x.parser.body());
  auto box = std::make_shared<std::optional<HttpOutcome>>();
  asio::thread_pool& pool = x.request.body.size() >= kBulkBody ? context_->bulk : context_->quick;
  asio::post(pool, [self = shared_from_this(), box, call, request = std::move(x.request)]() mutable {
    HttpOutcome outcome = self->context_->ending ? HttpReply{.status = 503} : call(request);
    // The connection goes along, so that its last owner is a handler of its own thread.
    asio::post(self->executor_, [self, box, outcome = std::move(outcome)]() mutable {
      *box = std::move(outcome);
      self->notify();
    });
  });
  while (!*box) co_await sleep_until(Clock::time_point::max());
  co_return std::move(**box);
}

/// Reads one request and answers it. False: the connection is to end.
HttpConnection::Awaitable<bool> HttpConnection::exchange() {
  Exchange x(*context_);
  if (!co_await read_head(x)) co_return false;
  const HttpHead& head = x.parser.head();
  x.record.method = head.method.empty() ? "-" : head.method;
  x.request.headers = head.service;
  x.request.id = valid_request_id(head.request_id) ? head.request_id : new_request_id();
  x.record.id = x.request.id;
  x.record.path = "-";

  std::optional<HttpOutcome> outcome;
  if (!x.fault) {
    x.close = !head.keep_alive;
    if (auto refused = refusal(x)) outcome = std::move(*refused);
    x.record.path = x.request.path.empty() ? "-" : x.request.path;
    if (!co_await read_body(x, !outcome)) co_return false;
  }
  if (x.fault) {
    x.close = true;
    outcome = error_reply(x.fault->status, x.fault->message,
                          x.fault->status >= 500 ? "server_error" : "invalid_request_error");
  }
  if (!outcome) outcome = co_await handle(x);
  if (context_->draining) x.close = true;

  if (auto* reply = std::get_if<HttpReply>(&*outcome)) {
    co_await send_reply(x, std::move(*reply));
  } else {
    co_await send_answer(x, std::move(std::get<std::unique_ptr<HttpAnswer>>(*outcome)));
  }
  record(x);
  co_return !x.close && !gone_;
}

void HttpConnection::record(Exchange& x) const {
  x.record.peer = peer_;
  x.record.route = x.match.route == nullptr ? "other" : x.match.route->path;
  x.record.seconds = std::chrono::duration<double>(Clock::now() - x.began).count();
  if (context_->on_exchange) context_->on_exchange(x.record);
}

std::string HttpConnection::head_of(Exchange& x, const HttpReply& reply, BodyFraming framing) const {
  auto headers = reply.headers;
  for (auto& header : cors_headers(context_->cors, x.parser.head().origin)) headers.push_back(std::move(header));
  return response_head({.status = reply.status,
                        .content_type = reply.content_type,
                        .framing = framing,
                        .length = reply.body.size(),
                        .keep_alive = !x.close,
                        .http10 = x.parser.head().http10,
                        .request_id = x.record.id,
                        .headers = headers});
}

HttpConnection::Awaitable<void> HttpConnection::send_reply(Exchange& x, HttpReply reply) {
  x.record.status = reply.status;
  std::string bytes = head_of(x, reply, BodyFraming::length);
  if (x.parser.head().method != "HEAD" && reply.status != 204) bytes += reply.body;
  co_await send(x, bytes);
}

/// The head of a stream, which is then under way.
std::string HttpConnection::begin_stream(Exchange& x, std::string_view type,
                                         std::vector<std::pair<std::string, std::string>> headers) {
  const bool chunked = !x.parser.head().http10;
  if (!chunked) x.close = true;  // its end is the body's end
  HttpReply head{.content_type = std::string(type)};
  head.headers = std::move(headers);
  head.headers.emplace_back("Cache-Control", "no-cache");
  head.headers.emplace_back("X-Accel-Buffering", "no");
  x.record.status = head.status;
  streaming_ = true;
  return head_of(x, head, chunked ? BodyFraming::chunked : BodyFraming::close);
}

HttpConnection::Awaitable<void> HttpConnection::send_answer(Exchange& x, std::unique_ptr<HttpAnswer> answer) {
  x.record.status = kClientGone;
  if (gone_) co_return;
  auto refused = answer->start([weak = weak_from_this(), executor = executor_] {
    asio::post(executor, [weak] {
      if (const Self self = weak.lock()) {
        self->woken_ = true;
        self->notify();
      }
    });
  });
  if (refused) {
    co_await send_reply(x, std::move(*refused));
    co_return;
  }
  std::string out;
  const bool stream = answer->is_stream();
  const std::string_view file = answer->file_type();
  const bool chunked = !x.parser.head().http10;
  while (!gone_) {
    woken_ = false;
    HttpAnswer::Piece piece = answer->pull();
    if (piece.whole) {
      co_await send_reply(x, std::move(*piece.whole));
      break;
    }
    if (stream && file.empty() && !streaming_ && answer->accepted()) {
      if (!co_await send(x, begin_stream(x, "text/event-stream; charset=utf-8", answer->headers()))) break;
    }
    if (piece.broken) {
      x.close = true;
      wire_->close();
      break;
    }
    if (!piece.bytes.empty() || piece.last) {
      out.clear();
      if (!file.empty() && !streaming_) {
        out = begin_stream(x, file, answer->headers());
        if (x.parser.head().method == "HEAD") {
          co_await send(x, out);
          break;
        }
      }
      if (chunked) {
        append_chunk(out, piece.bytes);
        if (piece.last) out += kLastChunk;
      } else {
        out += piece.bytes;
      }
      if (!co_await send(x, out) || piece.last) break;
    } else if (!woken_) {
      co_await sleep_until(Clock::time_point::max());
    }
  }
  streaming_ = false;
  x.record.tokens = answer->use();
  if (gone_) {
    answer->cancel();
    x.record.status = kClientGone;
  }
}

/// False: the client left, or took nothing for too long.
HttpConnection::Awaitable<bool> HttpConnection::send(Exchange& x, std::string_view data) {
  error_code ec;
  const std::size_t at_once = wire_->write_now(data, ec);
  x.record.bytes += at_once;
  data.remove_prefix(at_once);
  while (!ec && !data.empty()) {
    write_end_.expires_after(std::chrono::duration_cast<Clock::duration>(context_->limits.write_timeout));
    write_end_.async_wait([weak = weak_from_this(), turn = ++writes_](const error_code& cancelled) {
      const Self self = weak.lock();
      if (!cancelled && self && self->writes_ == turn) self->wire_->close();
    });
    const Wire::Transfer taken = co_await wire_->write_some(data);
    ++writes_;
    write_end_.cancel();
    ec = taken.first;
    x.record.bytes += taken.second;
    data.remove_prefix(taken.second);
  }
  if (ec) gone_ = true;
  co_return !gone_;
}

/// Ends the connection so that the client can read the last answer: a socket that is closed with bytes unread in it
/// takes back what it sent.
HttpConnection::Awaitable<void> HttpConnection::linger() {
  const auto deadline = Clock::now() + kLinger;
  write_end_.expires_at(deadline);
  write_end_.async_wait([weak = weak_from_this(), turn = ++writes_](const error_code& cancelled) {
    const Self self = weak.lock();
    if (!cancelled && self && self->writes_ == turn) self->wire_->close();
  });
  if (!gone_) co_await wire_->finish();
  while (!gone_ && !context_->draining && Clock::now() < deadline) {
    input_.clear();
    room_.cancel();
    co_await sleep_until(deadline);
  }
  ++writes_;
  write_end_.cancel();
}

}  // namespace millrace
