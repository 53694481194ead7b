#include "bench/statistics.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <string_view>

#include "core/check.h"

namespace millrace::bench {

std::optional<double> RequestRecord::tpot_s() const {
  if (output_tokens < 2) return std::nullopt;
  return (e2e_s - ttft_s) / static_cast<double>(output_tokens - 1);
}

double quantile(std::span<const double> sorted, double q) {
  MILLRACE_CHECK(!sorted.empty() && q >= 0 && q <= 1, "{} samples, quantile {}", sorted.size(), q);
  const double place = q * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(place);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (place - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

std::optional<Distribution> distribution(std::vector<double> samples) {
  if (samples.empty()) return std::nullopt;
  std::sort(samples.begin(), samples.end());
  const double sum = std::accumulate(samples.begin(), samples.end(), 0.0);
  return Distribution{sum / static_cast<double>(samples.size()), quantile(samples, 0.5), quantile(samples, 0.95),
                      quantile(samples, 0.99)};
}

bool Slo::met_by(const RequestRecord& record) const {
  const auto within = [](const std::optional<double>& limit, double value) { return !limit || value <= *limit; };
  return record.ok() && within(ttft_s, record.ttft_s) && within(tpot_s, record.tpot_s().value_or(0.0)) &&
         within(e2e_s, record.e2e_s);
}

Result<Slo> parse_slo(const std::string& text) {
  Slo slo;
  std::string_view rest = text;
  do {
    const std::size_t comma = std::min(rest.find(','), rest.size());
    const std::string_view part = rest.substr(0, comma);
    rest.remove_prefix(std::min(comma + 1, rest.size()));
    const std::size_t colon = std::min(part.find(':'), part.size());
    const std::string_view name = part.substr(0, colon);
    std::optional<double>* const limit = name == "ttft"   ? &slo.ttft_s
                                         : name == "tpot" ? &slo.tpot_s
                                         : name == "e2e"  ? &slo.e2e_s
                                                          : nullptr;
    double value = 0;
    const std::string_view number = part.substr(std::min(colon + 1, part.size()));
    const auto [end, code] = std::from_chars(number.data(), number.data() + number.size(), value);
    const bool whole = code == std::errc() && end == number.data() + number.size();
    if (limit == nullptr || *limit || !whole || !(value > 0 && std::isfinite(value))) {
      return fail("\"{}\" in \"{}\" is not a limit in seconds such as ttft:0.5, tpot:0.05 or e2e:10, each at most once",
                  part, text);
    }
    *limit = value;
  } while (!rest.empty());
  return slo;
}

LoadReport summarize(std::span<const RequestRecord> records, double duration_s, const std::optional<Slo>& slo,
                     const ClientCost& client) {
  LoadReport report;
  report.requests = static_cast<std::int64_t>(records.size());
  report.duration_s = duration_s;
  report.slo = slo;
  report.client = client;
  std::vector<double> ttft, tpot, itl, e2e, late;
  for (const RequestRecord& record : records) {
    late.push_back(std::max(0.0, record.start_s - record.due_s));
    if (!record.ok()) {
      ++report.failed;
      ++report.failures[record.failure];
      report.examples.emplace(record.failure, record.detail);
      continue;
    }
    report.input_tokens += record.input_tokens;
    report.output_tokens += record.output_tokens;
    if (record.cached_tokens) report.cached_tokens = report.cached_tokens.value_or(0) + *record.cached_tokens;
    if (!record.usage_reported) ++report.without_usage;
    if (slo.value_or(Slo{}).met_by(record)) ++report.good_requests;
    ttft.push_back(record.ttft_s);
    e2e.push_back(record.e2e_s);
    if (const auto each = record.tpot_s(); each) tpot.push_back(*each);
    itl.insert(itl.end(), record.itl_s.begin(), record.itl_s.end());
  }
  report.ttft_s = distribution(std::move(ttft));
  report.tpot_s = distribution(std::move(tpot));
  report.itl_s = distribution(std::move(itl));
  report.e2e_s = distribution(std::move(e2e));
  std::sort(late.begin(), late.end());
  if (!late.empty()) report.late_p99_s = quantile(late, 0.99);
  return report;
}

}  // namespace millrace::bench
