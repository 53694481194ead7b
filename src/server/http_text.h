// The text side of HTTP/1.1: targets, heads, chunks, ids, and what may stand in a log line. Pure functions.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "server/http_message.h"

namespace millrace {

/// Path of a request target: without query, and in absolute form without scheme and authority. "*" is itself. Nothing:
/// not a target.
std::optional<std::string_view> target_path(std::string_view target);

/// What stands behind the '?' of a target; empty where nothing does.
std::string_view target_query(std::string_view target);

/// The first value of `key` in a query, decoded ("a=1&b=x%20y"); nothing: it is not there, or no text.
std::optional<std::string> query_value(std::string_view query, std::string_view key);

/// Nothing: a '%' that two hexadecimal digits do not follow, or a NUL byte.
std::optional<std::string> percent_decode(std::string_view text);

/// ASCII only.
bool equals_ignoring_case(std::string_view a, std::string_view b);

/// A client's X-Request-Id is echoed and logged when it is 1 to 128 letters, digits and -._:/+=@~; else it gets a new
/// one.
bool valid_request_id(std::string_view id);
std::string new_request_id();

/// Printable ASCII without quotes and backslashes stays; every other byte becomes \xNN; cut after `limit` bytes of
/// input with "...". No input can end a log line or look like another field of it.
std::string escape_for_log(std::string_view text, std::size_t limit = 256);

/// How the body that follows a head is delimited.
enum class BodyFraming : unsigned char { length, chunked, close };

struct ResponseHead {
  int status = 200;
  std::string_view content_type = {};  // empty: none
  BodyFraming framing = BodyFraming::length;
  std::uint64_t length = 0;  // with BodyFraming::length; no header for status 204
  bool keep_alive = true;
  bool http10 = false;
  std::string_view request_id = {};
  std::span<const std::pair<std::string, std::string>> headers = {};
};

/// Status line and headers, ended by the empty line. Header values with line breaks in them are left out.
std::string response_head(const ResponseHead& head);

/// Appends `data` as one chunk; nothing for empty data, which would end the body.
void append_chunk(std::string& out, std::string_view data);
inline constexpr std::string_view kLastChunk = "0\r\n\r\n";

}  // namespace millrace
