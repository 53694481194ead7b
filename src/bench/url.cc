#include "bench/url.h"

#include <algorithm>
#include <charconv>
#include <string_view>

namespace millrace::bench {

namespace {

Result<std::string> parse_port(std::string_view text, const std::string& url) {
  int port = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (code != std::errc() || end != text.data() + text.size() || port < 1 || port > 65535) {
    return fail("{}: \"{}\" is not a port from 1 to 65535", url, text);
  }
  return std::to_string(port);
}

}  // namespace

std::string Url::authority() const {
  std::string text = host.find(':') == std::string::npos ? host : "[" + host + "]";
  if (port != (tls ? "443" : "80")) text += ":" + port;
  return text;
}

Result<Url> parse_url(const std::string& text) {
  const bool plain_text = std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7f; });
  if (!plain_text || text.find_first_of("\"<>\\^`{|}") != std::string::npos) {
    return fail("the URL has characters that must not be in one");
  }
  Url url;
  std::string_view rest = text;
  if (rest.starts_with("http://")) {
    rest.remove_prefix(7);
  } else if (rest.starts_with("https://")) {
    rest.remove_prefix(8);
    url.tls = true;
  } else {
    return fail("{}: a URL begins with http:// or https://", text);
  }
  if (rest.find_first_of("@?#") != std::string_view::npos) {
    return fail("{}: a user name, query or fragment is not supported", text);
  }
  const std::size_t slash = std::min(rest.find('/'), rest.size());
  std::string_view authority = rest.substr(0, slash);
  std::string_view path = rest.substr(slash);
  std::string_view after_host;
  if (authority.starts_with('[')) {
    const std::size_t close = authority.find(']');
    if (close == std::string_view::npos) return fail("{}: the bracket of the address is not closed", text);
    url.host = authority.substr(1, close - 1);
    after_host = authority.substr(close + 1);
  } else {
    const std::size_t colon = std::min(authority.find(':'), authority.size());
    url.host = authority.substr(0, colon);
    after_host = authority.substr(colon);
  }
  if (url.host.empty()) return fail("{}: no host in the URL", text);
  url.port = url.tls ? "443" : "80";
  if (!after_host.empty()) {
    if (after_host.front() != ':') return fail("{}: expected :port after the host", text);
    MILLRACE_TRY(url.port, parse_port(after_host.substr(1), text));
  }
  const auto drop_slashes = [&path] {
    while (path.ends_with('/')) path.remove_suffix(1);
  };
  drop_slashes();
  if (path.ends_with("/v1")) path.remove_suffix(3);
  drop_slashes();
  url.path = path;
  return url;
}

}  // namespace millrace::bench
