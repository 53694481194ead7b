#include "server/api_error.h"

#include <fmt/format.h>

#include "server/api_json.h"

namespace millrace {

namespace {

/// Long enough for some requests to have ended, short enough for a machine that is idle by then.
constexpr int kRetryBusySeconds = 1;
/// A server that drains is gone soon; what takes its place needs to start.
constexpr int kRetryUnavailableSeconds = 5;

void append_member(std::string& out, std::string_view key, const std::optional<std::string>& value) {
  fmt::format_to(std::back_inserter(out), ",\"{}\":", key);
  if (value) {
    append_json_string(out, *value);
  } else {
    out += "null";
  }
}

}  // namespace

std::string ApiError::json() const {
  std::string out = R"({"error":{"message":)";
  append_json_string(out, message);
  append_member(out, "type", type);
  append_member(out, "param", param);
  append_member(out, "code", code);
  out += "}}";
  return out;
}

ApiError ApiError::from(const Error& error) {
  switch (error.kind) {
    case ErrorKind::busy:
      return {.status = 429,
              .message = error.message,
              .type = "rate_limit_error",
              .code = "rate_limit_exceeded",
              .retry_after_s = kRetryBusySeconds};
    case ErrorKind::unavailable:
      return {.status = 503,
              .message = error.message,
              .type = "service_unavailable",
              .code = "service_unavailable",
              .retry_after_s = kRetryUnavailableSeconds};
    case ErrorKind::invalid:
      break;
  }
  return {.status = 400, .message = error.message};
}

ApiError ApiError::internal(std::string message) {
  return {.status = 500, .message = std::move(message), .type = "server_error"};
}

ApiError ApiError::unknown_model(std::string_view model) {
  return {.status = 404,
          .message = fmt::format("this server has no model `{}`; /v1/models lists what it has", model.substr(0, 256)),
          .code = "model_not_found"};
}

}  // namespace millrace
