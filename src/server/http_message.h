// A request and a reply as values: what handlers see of HTTP.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/api_error.h"

namespace millrace {

struct HttpRequest {
  std::string path;        // without query; in absolute form without scheme and host
  std::string query = {};  // behind the '?', as sent; query_value() reads it
  std::string parameter;   // what {id} of the route stands for, percent-decoded
  std::string content_type = {};
  std::string body;
  std::string id;      // X-Request-Id, the client's or one of ours
  std::string tenant;  // who asks: its name, or a digest of the API key (ApiKeys); empty where no keys are asked for
  /// Those that say how to serve it: names in lower case that begin with "x-", and idempotency-key.
  std::vector<std::pair<std::string, std::string>> headers = {};

  /// The first of this name; empty: there is none.
  [[nodiscard]] std::string_view header(std::string_view name) const {
    for (const auto& [known, value] : headers) {
      if (known == name) return value;
    }
    return {};
  }
};

struct HttpReply {
  int status = 200;
  std::string content_type = "application/json";
  std::string body = {};
  std::vector<std::pair<std::string, std::string>> headers = {};  // further ones; no line breaks in them
};

/// Tokens of a request for the access log; -1: it had none to count.
struct TokenUse {
  std::int64_t prompt = -1, cached = -1, generated = -1;
  double usd = -1.0;  // what it cost; -1: nobody knows
};

/// An exchange that has ended; what log and metrics are told. Never holds a prompt, an answer or a key.
struct HttpRecord {
  std::string peer = {};    // address:port
  std::string method = {};  // "-" where the request could not be read
  std::string path = {};    // as sent, not escaped; without query
  std::string route = {};   // the route's path, or "other": few values, whatever clients send
  int status = 0;           // 499: the client left before the answer ended
  std::uint64_t bytes = 0;  // sent, head included
  double seconds = 0.0;     // from the first byte of the request to the last of the answer
  std::string id = {};      // X-Request-Id
  TokenUse tokens = {};
};

/// An error in OpenAI's shape. `code` empty: null. `message` may hold any bytes.
HttpReply error_reply(int status, std::string_view message, std::string_view type = "invalid_request_error",
                      std::string_view code = {});
/// With Retry-After where the error has one.
HttpReply error_reply(const ApiError& error);

}  // namespace millrace
