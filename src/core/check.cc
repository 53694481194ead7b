#include "core/check.h"

#include <cstdio>
#include <cstdlib>

namespace millrace::detail {

void check_failed(const char* file, int line, const char* condition, const std::string& context) {
  std::fprintf(stderr, "millrace: broken invariant at %s:%d: %s%s%s\n", file, line, condition,
               context.empty() ? "" : ": ", context.c_str());
  std::abort();
}

}  // namespace millrace::detail
