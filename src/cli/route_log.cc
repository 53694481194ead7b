#include "cli/route_log.h"

#include <cerrno>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>

namespace millrace::cli {

Result<RouteLog> RouteLog::open(const std::string& path) {
  RouteLog log;
  if (path.empty()) return log;
  std::FILE* file = std::fopen(path.c_str(), "ae");
  if (file == nullptr) return fail("--route-log {}: {}", path, std::strerror(errno));
  log.file_ = std::shared_ptr<std::FILE>(file, std::fclose);
  return log;
}

void RouteLog::write(const NodeWork& work) const {
  if (file_ == nullptr || work.first == Instant{0}) return;
  constexpr std::int64_t kLeast = 8;
  const auto seconds = [](Duration time) { return std::chrono::duration<double>(time).count(); };
  nlohmann::json line{{"node", work.node},
                      {"prompt_tokens", work.prompt_tokens},
                      {"cached_tokens", work.cached_tokens},
                      {"tokens", work.tokens},
                      {"beside", work.beside},
                      {"queued", work.queued},
                      {"ttft_predicted", work.ttft},
                      {"ttft", seconds(work.first - work.placed)},
                      {"tpot_predicted", work.tpot},
                      {"tpot", nullptr}};
  const std::int64_t later = work.tokens / work.choices - 1;
  if (later + 1 >= kLeast) line["tpot"] = seconds(work.last - work.first) / static_cast<double>(later);
  std::fprintf(file_.get(), "%s\n", line.dump().c_str());
  std::fflush(file_.get());
}

}  // namespace millrace::cli
