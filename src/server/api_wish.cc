#include "server/api_wish.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>

namespace millrace {

namespace {

constexpr double kMostMs = 1e9;
constexpr std::size_t kMostName = 64, kMostLabels = 8;

ApiError refuse(std::string_view header, std::string_view expected) {
  return {.message = fmt::format("The header {} is wrong: expected {}.", header, expected),
          .param = std::string(header),
          .code = "invalid_header"};
}

std::string_view trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

ApiResult<std::optional<double>> seconds_of(const HttpRequest& request, std::string_view header) {
  const std::string_view text = request.header(header);
  if (text.empty()) return std::optional<double>();
  double ms = 0.0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), ms);
  if (problem != std::errc() || end != text.data() + text.size() || !(ms > 0.0 && ms <= kMostMs)) {
    return refuse(header, "milliseconds above 0");
  }
  constexpr double kMsPerSecond = 1000.0;
  return std::optional(ms / kMsPerSecond);
}

}  // namespace

ApiResult<ServiceWish> parse_wish(const HttpRequest& request) {
  ServiceWish wish;
  MILLRACE_TRY(wish.ttft_slo, seconds_of(request, "x-slo-ttft-ms"));
  MILLRACE_TRY(wish.tpot_slo, seconds_of(request, "x-slo-tpot-ms"));
  wish.region = request.header("x-millrace-region");
  if (wish.region.size() > kMostName) return refuse("x-millrace-region", "the name of a region");
  std::string_view labels = request.header("x-millrace-labels");
  while (!labels.empty()) {
    const std::size_t comma = labels.find(',');
    const std::string_view label = trimmed(labels.substr(0, comma));
    labels.remove_prefix(comma == std::string_view::npos ? labels.size() : comma + 1);
    if (label.empty()) continue;
    if (label.size() > kMostName || wish.labels.size() == kMostLabels) {
      return refuse("x-millrace-labels", "a few names, separated by commas");
    }
    wish.labels.emplace_back(label);
  }
  const std::string_view data_class = request.header("x-millrace-data-class");
  if (!data_class.empty() && data_class != "open" && data_class != "trusted") {
    return refuse("x-millrace-data-class", "open or trusted");
  }
  wish.trusted = data_class == "trusted";
  return wish;
}

}  // namespace millrace
