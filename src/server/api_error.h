// ApiError: what a client is told when a request cannot be served, as OpenAI's API says it.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

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

/// A value, or what to tell the client. MILLRACE_TRY works with it in functions that return ApiResult.
template <typename T>
class [[nodiscard]] ApiResult {
 public:
  ApiResult(T value) : state_(std::in_place_index<0>, std::move(value)) {}         // NOLINT: implicit by design
  ApiResult(ApiError error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT: implicit by design

  [[nodiscard]] bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & { return std::get<0>(state_); }
  const T& value() const& { return std::get<0>(state_); }
  T&& value() && { return std::get<0>(std::move(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  [[nodiscard]] const ApiError& error() const& { return std::get<1>(state_); }
  [[nodiscard]] ApiError&& error() && { return std::get<1>(std::move(state_)); }

 private:
  std::variant<T, ApiError> state_;
};
using ApiStatus = ApiResult<Ok>;

}  // namespace millrace
