// Invariants of our own code. A failed check is a bug: it prints where and what, and aborts. What users, files or peers
// can cause is never checked here but returned as a Result (core/result.h).
#pragma once

#include <fmt/format.h>

#include <string>

namespace millrace::detail {
[[noreturn]] void check_failed(const char* file, int line, const char* condition, const std::string& context);
}  // namespace millrace::detail

/// MILLRACE_CHECK(page < count, "page {} of {}", page, count);
#define MILLRACE_CHECK(condition, ...)                                                               \
  do {                                                                                               \
    if (!(condition)) [[unlikely]] {                                                                 \
      ::millrace::detail::check_failed(__FILE__, __LINE__, #condition, fmt::format("" __VA_ARGS__)); \
    }                                                                                                \
  } while (false)
