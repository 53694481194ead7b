// Result<T>: how everything that a user, a file or a network can cause is reported.
//
// A function that can fail because of its input returns Result<T>; the Error holds one line that says what was wrong,
// where, and what was expected. Where more must be told, it returns Result<T, E>. Broken invariants of our own abort
// instead: see core/check.h.
#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>
#include <variant>

namespace millrace {

/// What the caller can do about it: nothing until the input changes; try again later; go elsewhere.
enum class ErrorKind : unsigned char { invalid, busy, unavailable };

struct Error {
  std::string message;  // one line, no trailing newline
  ErrorKind kind = ErrorKind::invalid;
};

/// Builds an Error from a format string: `return fail("page size {} is not a power of two", n);`
template <typename... Args>
[[nodiscard]] Error fail(fmt::format_string<Args...> format, Args&&... args) {
  return Error{fmt::format(format, std::forward<Args>(args)...), ErrorKind::invalid};
}

template <typename T, typename E = Error>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}  // NOLINT: implicit by design
  Result(E error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT: implicit by design

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

  [[nodiscard]] const E& error() const& { return std::get<1>(state_); }
  [[nodiscard]] E&& error() && { return std::get<1>(std::move(state_)); }

 private:
  std::variant<T, E> state_;
};

/// Result of a function that only succeeds or fails: `return Ok{};`
struct Ok {};
using Status = Result<Ok>;

}  // namespace millrace

#define MILLRACE_CONCAT_INNER(a, b) a##b
#define MILLRACE_CONCAT(a, b) MILLRACE_CONCAT_INNER(a, b)

/// `MILLRACE_TRY(auto file, MappedFile::open(path));` binds the value or returns the error to the caller.
#define MILLRACE_TRY(declaration, expression) \
  MILLRACE_TRY_INNER(MILLRACE_CONCAT(millrace_try_, __LINE__), declaration, expression)
#define MILLRACE_TRY_INNER(name, declaration, expression) \
  auto name = (expression);                               \
  if (!name.ok()) return std::move(name).error();         \
  declaration = std::move(name).value()

/// `MILLRACE_CHECK_OK(validate(x));` returns the error to the caller, drops the value.
#define MILLRACE_CHECK_OK(expression)                                     \
  do {                                                                    \
    auto millrace_status = (expression);                                  \
    if (!millrace_status.ok()) return std::move(millrace_status).error(); \
  } while (false)
