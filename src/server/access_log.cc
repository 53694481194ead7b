#include "server/access_log.h"

#include <fmt/format.h>

#include "server/http_text.h"

namespace millrace {

std::string access_line(const HttpRecord& record) {
  const auto count = [](std::int64_t tokens) { return tokens < 0 ? std::string("-") : std::to_string(tokens); };
  return fmt::format(
      "peer={} method={} path={} status={} bytes={} seconds={:.4f} id={} prompt={} cached={} generated={}", record.peer,
      escape_for_log(record.method, 32), escape_for_log(record.path), record.status, record.bytes, record.seconds,
      escape_for_log(record.id, 128), count(record.tokens.prompt), count(record.tokens.cached),
      count(record.tokens.generated));
}

}  // namespace millrace
