#include "server/http_parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <cctype>
#include <limits>

#include "server/http_text.h"

namespace millrace {

namespace {

namespace http = boost::beast::http;
using boost::beast::error_code;

/// A body in a string that grows with what arrives: a Content-Length alone reserves nothing.
struct GrowingBody {
  struct value_type {
    std::string bytes;
    bool keep = true;
  };

  class reader {
   public:
    template <bool isRequest, class Fields>
    reader(http::header<isRequest, Fields>&, value_type& body) : body_(&body) {}

    void init(const boost::optional<std::uint64_t>&, error_code& ec) { ec = {}; }

    template <class Buffers>
    std::size_t put(const Buffers& buffers, error_code& ec) {
      ec = {};
      std::size_t size = 0;
      for (auto it = boost::asio::buffer_sequence_begin(buffers); it != boost::asio::buffer_sequence_end(buffers);
           ++it) {
        const boost::asio::const_buffer part(*it);
        if (body_->keep) body_->bytes.append(static_cast<const char*>(part.data()), part.size());
        size += part.size();
      }
      return size;
    }

    void finish(error_code& ec) { ec = {}; }

   private:
    value_type* body_;
  };
};

std::string_view view(boost::beast::string_view text) {
  return {text.data(), text.size()};
}

HttpFault fault_of(const error_code& ec) {
  if (ec == http::error::header_limit) return {431, "the request's header is too large"};
  if (ec == http::error::body_limit) return {413, "the request's body is too large"};
  if (ec == http::error::bad_version) return {505, "this server speaks HTTP/1.0 and HTTP/1.1"};
  return {400, fmt::format("malformed HTTP request: {}", ec.message())};
}

}  // namespace

struct HttpParser::Impl {
  http::request_parser<GrowingBody> parser;
};

HttpParser::HttpParser(std::size_t max_header, std::uint64_t max_body)
    : impl_(std::make_unique<Impl>()), max_header_(max_header), header_left_(max_header), max_body_(max_body) {
  // Beast's own limit lies out of reach: it counts differently when a header comes in pieces, so put() keeps ours.
  impl_->parser.header_limit(std::numeric_limits<std::uint32_t>::max());
  // Applied when the head is complete (take_head), so that also a refusal for its length knows the head.
  impl_->parser.body_limit(boost::none);
}

HttpParser::~HttpParser() = default;

std::string& HttpParser::body() {
  return impl_->parser.get().body().bytes;
}

void HttpParser::discard_body() {
  impl_->parser.get().body().keep = false;
}

HttpParser::Progress HttpParser::put(std::string_view input, std::size_t& consumed, std::optional<HttpFault>& fault) {
  auto& parser = impl_->parser;
  consumed = 0;
  while (!parser.is_done()) {
    std::string_view rest = input.substr(consumed);
    if (rest.empty()) return Progress::need_more;
    // Beast (of Boost 1.81) asserts that a last chunk that it has begun to read is at least its shortest form.
    constexpr std::size_t kShortestEnd = std::string_view("0\r\n\r\n").size();
    if (head_taken_ && head_.chunked && rest.size() < kShortestEnd) return Progress::need_more;
    // Beast leaves a head, and the trailers behind a body, until it sees all of them, so that what it is shown at once
    // is what they may have.
    const std::size_t window = head_taken_ ? max_header_ : header_left_;
    const bool cut = rest.size() > window;
    rest = rest.substr(0, window);
    error_code ec;
    const std::size_t taken = parser.put(boost::asio::const_buffer(rest.data(), rest.size()), ec);
    consumed += taken;
    if (!head_taken_) header_left_ -= taken;
    if (ec == http::error::need_more && !cut) return Progress::need_more;
    if (ec == http::error::need_more && taken > 0) continue;
    if (ec == http::error::need_more) {
      fault = head_taken_ ? HttpFault{400, "a chunk's extension or the trailers are too large"}
                          : fault_of(http::error::header_limit);
      return Progress::need_more;
    }
    if (ec) {
      fault = fault_of(ec);
      return Progress::need_more;
    }
    if (!head_taken_ && parser.is_header_done()) {
      head_taken_ = true;
      fault = take_head();
      return Progress::header_done;
    }
  }
  return Progress::complete;
}

std::optional<HttpFault> HttpParser::take_head() {
  auto& parser = impl_->parser;
  parser.body_limit(max_body_);
  const auto& message = parser.get();
  const auto text = [&](auto name) { return std::string(view(message[name])); };
  head_.method = view(message.method_string());
  head_.target = view(message.target());
  head_.http10 = message.version() < 11;
  head_.keep_alive = message.keep_alive();
  head_.chunked = parser.chunked();
  if (const auto length = parser.content_length()) head_.content_length = *length;
  head_.content_type = text(http::field::content_type);
  head_.authorization = text(http::field::authorization);
  head_.request_id = text("X-Request-Id");
  for (const auto& field : message) {
    std::string name(view(field.name_string()));
    std::ranges::transform(name, name.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    if (!name.starts_with("x-") && name != "idempotency-key") continue;
    head_.service.emplace_back(std::move(name), view(field.value()));
  }
  head_.origin = text(http::field::origin);
  head_.asks_method = text(http::field::access_control_request_method);
  head_.asks_headers = text(http::field::access_control_request_headers);

  const std::size_t hosts = message.count(http::field::host);
  if (hosts > 1 || (hosts == 0 && !head_.http10)) return HttpFault{400, "expected exactly one Host header"};
  // Two readers of one connection that disagree about where a request ends are how requests are smuggled, so that
  // everything but the plain cases is refused.
  if (message.count(http::field::transfer_encoding) > 0) {
    if (head_.http10) return HttpFault{400, "Transfer-Encoding does not exist in HTTP/1.0"};
    if (message.count(http::field::content_length) > 0) {
      return HttpFault{400, "a request has a Content-Length or a Transfer-Encoding, not both"};
    }
    if (message.count(http::field::transfer_encoding) > 1 ||
        !equals_ignoring_case(view(message[http::field::transfer_encoding]), "chunked")) {
      return HttpFault{501, "the only Transfer-Encoding known here is chunked"};
    }
  }
  if (message.count(http::field::expect) > 0) {
    if (!equals_ignoring_case(view(message[http::field::expect]), "100-continue")) {
      return HttpFault{417, "the only expectation known here is 100-continue"};
    }
    head_.expects_continue = !head_.http10;
  }
  if (head_.content_length.value_or(0) > max_body_) {
    return HttpFault{413, fmt::format("the request's body of {} bytes is larger than the {} that are allowed",
                                      *head_.content_length, max_body_)};
  }
  return std::nullopt;
}

}  // namespace millrace
