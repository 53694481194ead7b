// Bytes of a connection to one request: Beast's parser with our limits, and what Beast leaves to its user.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace millrace {

/// What is refused, and the status to say it with; the connection cannot go on.
struct HttpFault {
  int status = 400;
  std::string message;
};

/// The head of a request, copied when it was complete, so that trailers cannot alter it.
struct HttpHead {
  std::string method;  // as sent: upper case where it is a known one
  std::string target;
  bool http10 = false;
  bool keep_alive = true;
  bool expects_continue = false;
  std::optional<std::uint64_t> content_length;
  bool chunked = false;
  std::vector<std::pair<std::string, std::string>> service = {};  // as HttpRequest::headers has it
  std::string content_type, authorization, request_id, origin;    // empty: absent, as
  std::string asks_method, asks_headers;                          // these of CORS

  [[nodiscard]] bool has_body() const { return chunked || content_length.value_or(0) > 0; }
};

/// One request; a connection makes a new one for each. Refused besides what Beast refuses: HTTP/1.1 without exactly one
/// Host, a Transfer-Encoding other than a single "chunked" or in HTTP/1.0 or beside a Content-Length, unknown
/// expectations.
class HttpParser {
 public:
  /// `max_header` bytes from the request line to the empty line, however they arrive, and as many of trailers.
  /// `max_body` bytes, also of a chunked one; checked against Content-Length before any of the body is read.
  HttpParser(std::size_t max_header, std::uint64_t max_body);
  ~HttpParser();

  enum class Progress : unsigned char { need_more, header_done, complete };

  /// Takes bytes from the front of `input` and says how many in `consumed`; what is left must be given again, with more
  /// behind it. `header_done` is answered once, before any of the body is taken.
  Progress put(std::string_view input, std::size_t& consumed, std::optional<HttpFault>& fault);

  /// Once the header is done; also when it is what was refused.
  [[nodiscard]] const HttpHead& head() const { return head_; }
  /// What came of it so far.
  [[nodiscard]] std::string& body();
  /// A body that is only read past: not kept, still counted.
  void discard_body();

 private:
  struct Impl;
  std::optional<HttpFault> take_head();

  std::unique_ptr<Impl> impl_;
  std::size_t max_header_;
  std::size_t header_left_;  // bytes that the head may still take
  std::uint64_t max_body_;
  HttpHead head_;
  bool head_taken_ = false;
};

}  // namespace millrace
