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
  enum class Method : unsigned char { get, post, erase };  // a GET route also answers HEAD

  Method method = Method::get;
  /// "/v1/models"; or with one "{id}" in it: at the end anything that is not empty, slashes too, else without slashes.
  std::string path;
  bool open = false;  // needs no key, and answers also while the server drains
  /// A GET route's runs on the connection's thread and must be quick, others' on a worker thread. Thread-safe.
  std::function<HttpOutcome(const HttpRequest&)> handle;

  /// "GET, HEAD", "POST" or "DELETE".
  [[nodiscard]] std::string_view methods() const;
};

struct RouteMatch {
  const HttpRoute* route = nullptr;  // null: no such path
  std::string parameter;             // what {id} stands for, decoded
  bool method_fits = false;          // else 405, or OPTIONS
  std::string methods;               // of all routes of this path, unless one fits

  /// "POST, OPTIONS"; empty where there is no such path.
  [[nodiscard]] std::string allow() const { return route == nullptr ? std::string() : methods + ", OPTIONS"; }
};

RouteMatch find_route(const std::vector<HttpRoute>& routes, std::string_view method, std::string_view path);

/// What an unmatched request is told: 404, or 405 with Allow.
HttpReply no_route_reply(const RouteMatch& match, std::string_view method, std::string_view path);

/// Origins that browsers may call from; "*" among them: all. Empty: no CORS header is ever sent.
using CorsOrigins = std::vector<std::string>;

/// Headers that answers to a request from `origin` get; none where it is empty or not among them.
std::vector<std::pair<std::string, std::string>> cors_headers(const CorsOrigins& origins, std::string_view origin);

/// 204 with Allow and, where `origin` may call and `asks_method` is not empty, what a preflight wants to know.
/// `asks_headers` are granted as far as they are header names. `allow`: RouteMatch::allow(); empty: `OPTIONS *`.
HttpReply options_reply(std::string_view allow, const CorsOrigins& origins, std::string_view origin,
                        std::string_view asks_method, std::string_view asks_headers);

}  // namespace millrace
