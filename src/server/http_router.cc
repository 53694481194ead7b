#include "server/http_router.h"

#include <fmt/format.h>

#include <algorithm>

#include "server/http_text.h"

namespace millrace {

namespace {

constexpr std::string_view kPlace = "{id}";

/// Whether `path` is the route's; what stands for {id} goes to `parameter`.
bool matches(const HttpRoute& route, std::string_view path, std::string& parameter) {
  const std::string_view pattern = route.path;
  const std::size_t place = pattern.find(kPlace);
  if (place == std::string_view::npos) return path == pattern;
  const std::string_view prefix = pattern.substr(0, place), suffix = pattern.substr(place + kPlace.size());
  if (path.size() <= prefix.size() + suffix.size() || !path.starts_with(prefix) || !path.ends_with(suffix))
    return false;
  const std::string_view given = path.substr(prefix.size(), path.size() - prefix.size() - suffix.size());
  if (!suffix.empty() && given.find('/') != std::string_view::npos) return false;
  auto decoded = percent_decode(given);
  if (!decoded) return false;
  parameter = std::move(*decoded);
  return true;
}

bool method_fits(const HttpRoute& route, std::string_view method) {
  switch (route.method) {
    case HttpRoute::Method::get:
      return method == "GET" || method == "HEAD";
    case HttpRoute::Method::post:
      return method == "POST";
    case HttpRoute::Method::erase:
      return method == "DELETE";
  }
  return false;
}

bool is_header_list(std::string_view text) {
  constexpr std::string_view kOthers = "!#$%&'*+-.^_`|~, ";
  return text.size() <= 2048 && std::all_of(text.begin(), text.end(), [&](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                  kOthers.find(c) != std::string_view::npos;
         });
}

}  // namespace

std::string_view HttpRoute::methods() const {
  switch (method) {
    case Method::get:
      return "GET, HEAD";
    case Method::post:
      return "POST";
    case Method::erase:
      return "DELETE";
  }
  return {};
}

RouteMatch find_route(const std::vector<HttpRoute>& routes, std::string_view method, std::string_view path) {
  RouteMatch match;
  for (const HttpRoute& route : routes) {
    std::string parameter;
    if (!matches(route, path, parameter)) continue;
    match.route = &route;
    match.parameter = std::move(parameter);
    match.method_fits = method_fits(route, method);
    if (match.method_fits) break;
    if (!match.methods.empty()) match.methods += ", ";
    match.methods += route.methods();
  }
  return match;
}

HttpReply no_route_reply(const RouteMatch& match, std::string_view method, std::string_view path) {
  const auto shown = [](std::string_view text) { return escape_for_log(text, 128); };
  if (match.route == nullptr)
    return error_reply(404, fmt::format("There is no {} {} here.", shown(method), shown(path)));
  HttpReply reply =
      error_reply(405, fmt::format("{} does not take {}, only {}.", shown(path), shown(method), match.allow()),
                  "invalid_request_error", "method_not_supported");
  reply.headers.emplace_back("Allow", match.allow());
  return reply;
}

std::vector<std::pair<std::string, std::string>> cors_headers(const CorsOrigins& origins, std::string_view origin) {
  if (origins.empty()) return {};
  const bool all = std::find(origins.begin(), origins.end(), "*") != origins.end();
  std::vector<std::pair<std::string, std::string>> headers;
  if (!all) headers.emplace_back("Vary", "Origin");  // also for those that may not: a cache must keep them apart
  if (origin.empty() || (!all && std::find(origins.begin(), origins.end(), origin) == origins.end())) return headers;
  headers.emplace_back("Access-Control-Allow-Origin", all ? "*" : std::string(origin));
  headers.emplace_back("Access-Control-Expose-Headers", "X-Request-Id, Retry-After");
  return headers;
}

HttpReply options_reply(std::string_view allow, const CorsOrigins& origins, std::string_view origin,
                        std::string_view asks_method, std::string_view asks_headers) {
  HttpReply reply{.status = 204, .content_type = {}};
  if (allow.empty()) allow = "GET, HEAD, POST, DELETE, OPTIONS";
  reply.headers.emplace_back("Allow", allow);
  // The origin itself is granted by cors_headers(), which every reply gets.
  const auto granted = cors_headers(origins, origin);
  if (asks_method.empty() || granted.size() < 2) return reply;
  reply.headers.emplace_back("Access-Control-Allow-Methods", allow);
  if (!asks_headers.empty() && is_header_list(asks_headers)) {
    reply.headers.emplace_back("Access-Control-Allow-Headers", asks_headers);
  }
  reply.headers.emplace_back("Access-Control-Max-Age", "600");
  return reply;
}

}  // namespace millrace
