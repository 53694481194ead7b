// Any bytes as what a client sends: the same requests, however the bytes were cut into pieces.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "server/http_parser.h"
#include "server/http_text.h"

namespace {

using namespace millrace;

/// The requests before the first fault when `bytes` come `piece` at a time. Where the fault is seen may differ.
std::string requests_in(std::string_view bytes, std::size_t piece) {
  constexpr std::size_t kMaxHeader = 512;
  constexpr std::uint64_t kMaxBody = 256;
  std::string told;
  std::string input;
  std::optional<HttpFault> fault;
  while (!fault) {
    HttpParser parser(kMaxHeader, kMaxBody);
    auto progress = HttpParser::Progress::need_more;
    while (progress != HttpParser::Progress::complete && !fault) {
      std::size_t consumed = 0;
      progress = parser.put(input, consumed, fault);
      if (consumed > input.size() || parser.body().size() > kMaxBody) std::abort();
      input.erase(0, consumed);
      if (progress != HttpParser::Progress::need_more || fault) continue;
      if (bytes.empty()) return told;
      input += bytes.substr(0, piece);
      bytes.remove_prefix(std::min(piece, bytes.size()));
    }
    if (fault) break;
    if (const auto path = target_path(parser.head().target)) {
      (void)percent_decode(*path);
      if (escape_for_log(*path).find('\n') != std::string::npos) std::abort();
    }
    told += parser.head().method + " " + parser.head().target + " " + parser.body() + "\n";
  }
  return told;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size > 4096) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const std::string whole = requests_in(bytes, bytes.size() + 1);
  for (const std::size_t piece : {1, 7}) {
    if (whole != requests_in(bytes, piece)) std::abort();
  }
  return 0;
}
