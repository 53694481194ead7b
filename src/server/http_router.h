// Which handler answers a path, what other methods are told, and what browsers from elsewhere may do (CORS).
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/http_answer.h"
#include "server/http_message.h"

namespace millrace {

struct HttpRoute {
  enum class Method : unsigned char { get, post };  // a GET route also answers HEAD

  Method method = Method::get;
  std::string path;   // "/v1/models", or ending in "/{id}": anything that is not empty, slashes too
  bool open = false;  // needs no key, and answers also while the server drains
  /// A POST route's runs on a worker thread, a GET route's on the connection's and must be quick. Thread-safe.
  std::function<HttpOutcome(const HttpRequest&)> handle;

  /// "GET, HEAD, OPTIONS" or "POST, OPTIONS".
  [[nodiscard]] std::string_view allow() const;
};

struct RouteMatch {
  const HttpRoute* route = nullptr;  // null: no such path
  std::string parameter;             // what {id} stands for, decoded
  bool method_fits = false;          // else 405, or OPTIONS
};

RouteMatch find_route(const std::vector<HttpRoute>& routes, std::string_view method, std::string_view path);

/// What an unmatched request is told: 404, or 405 with Allow.
HttpReply no_route_reply(const RouteMatch& match, std::string_view method, std::string_view path);

/// Origins that browsers may call from; "*" among them: all. Empty: no CORS header is ever sent.
using CorsOrigins = std::vector<std::string>;

/// Headers that answers to a request from `origin` get; none where it is empty or not among them.
std::vector<std::pair<std::string, std::string>> cors_headers(const CorsOrigins& origins, std::string_view origin);

/// 204 with Allow and, where `origin` may call and `asks_method` is not empty, what a preflight wants to know.
/// `asks_headers` are granted as far as they are header names. `route` null: `OPTIONS *`.
HttpReply options_reply(const HttpRoute* route, const CorsOrigins& origins, std::string_view origin,
                        std::string_view asks_method, std::string_view asks_headers);

}  // namespace millrace
