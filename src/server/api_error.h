// ApiError: what a client is told when a request cannot be served, as OpenAI's API says it.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "core/result.h"

namespace millrace {

struct ApiError {
  int status = 400;     // of HTTP
  std::string message;  // one sentence or a few, for people
  std::string type = "invalid_request_error";
  std::optional<std::string> param = {};  // the field of the body that is meant, "messages[0].role"; null where none is
  std::optional<std::string> code = {};   // for programs, "context_length_exceeded"; null where there is none
  std::optional<int> retry_after_s = {};  // for a Retry-After header

  /// {"error":{"message","type","param","code"}}
  [[nodiscard]] std::string json() const;

  /// What the engine said: invalid -> 400 invalid_request_error, busy -> 429 rate_limit_error with retry_after_s,
  /// unavailable -> 503 service_unavailable with retry_after_s.
  static ApiError from(const Error& error);
  /// 500 server_error.
  static ApiError internal(std::string message);
  /// 404 model_not_found.
  static ApiError unknown_model(std::string_view model);
};

template <typename T>
using ApiResult = Result<T, ApiError>;
using ApiStatus = ApiResult<Ok>;

}  // namespace millrace
