// Where requests go, and what comes back of one: values.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "bench/url.h"

namespace millrace::bench {

/// Where requests go, and how.
struct Target {
  Url url;
  std::string api_key = {};  // sent as a bearer token; empty: none
  bool verify = true;        // with TLS, that the server is who it says
  std::string ca_file = {};  // certificates to trust instead of the system's
  double timeout_s = 600;    // of a whole request
};

/// How a request went. `failure` is empty where a whole answer arrived, whatever its status.
struct Exchange {
  int status = 0;  // 0: there was none
  std::string content_type;
  std::optional<double> retry_after_s;
  std::string body;     // of answers that no sink took, up to 1 MiB
  std::string failure;  // a short name: connect, tls, timeout, connection_closed, protocol
  std::string detail;   // one line
};

/// What a sink wants after a piece of the body: more; the end, which is near (a second is given for it, so that the
/// connection can be used again); or nothing any more.
enum class BodyDemand : std::uint8_t { more, end, stop };
using BodySink = std::function<BodyDemand(std::string_view piece)>;

}  // namespace millrace::bench
