// Where the endpoint under test is.
#pragma once

#include <string>

#include "core/result.h"

namespace millrace::bench {

struct Url {
  bool tls = false;
  std::string host;  // a name or an address, without the brackets of IPv6
  std::string port;  // a number
  std::string path;  // before "/v1/...": empty, or begins and does not end with a slash

  /// What the Host header says.
  [[nodiscard]] std::string authority() const;
};

/// "http://host[:port][/path][/v1]", or https. Errors: another scheme, no host, a port that is none, user names,
/// queries and fragments, characters that no URL has.
Result<Url> parse_url(const std::string& text);

}  // namespace millrace::bench
