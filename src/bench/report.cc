#include "bench/report.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace millrace::bench {

namespace {

using nlohmann::ordered_json;

ordered_json distribution_json(const std::optional<Distribution>& d) {
  if (!d) return nullptr;
  return {{"mean", d->mean}, {"p50", d->p50}, {"p95", d->p95}, {"p99", d->p99}};
}

template <typename T>
ordered_json or_null(const std::optional<T>& value) {
  return value ? ordered_json(*value) : ordered_json(nullptr);
}

ordered_json slo_json(const std::optional<Slo>& slo) {
  if (!slo) return nullptr;
  return {{"ttft_s", or_null(slo->ttft_s)}, {"tpot_s", or_null(slo->tpot_s)}, {"e2e_s", or_null(slo->e2e_s)}};
}

std::string distribution_row(const char* label, const std::optional<Distribution>& d) {
  if (!d) return fmt::format("{:<6}{:>12}\n", label, "no samples");
  constexpr double kMilli = 1e3;
  return fmt::format("{:<6}{:>12.2f}{:>12.2f}{:>12.2f}{:>12.2f}\n", label, d->mean * kMilli, d->p50 * kMilli,
                     d->p95 * kMilli, d->p99 * kMilli);
}

}  // namespace

ordered_json report_json(const LoadReport& r) {
  return {{"requests", r.requests},
          {"failed", r.failed},
          {"output_tokens_per_second", r.per_second(static_cast<double>(r.output_tokens))},
          {"ttft_s", distribution_json(r.ttft_s)},
          {"tpot_s", distribution_json(r.tpot_s)},
          {"itl_s", distribution_json(r.itl_s)},
          {"e2e_s", distribution_json(r.e2e_s)},
          {"goodput", r.per_second(static_cast<double>(r.good_requests))},
          {"good_requests", r.good_requests},
          {"slo", slo_json(r.slo)},
          {"duration_s", r.duration_s},
          {"requests_per_second", r.per_second(static_cast<double>(r.requests - r.failed))},
          {"total_tokens_per_second", r.per_second(static_cast<double>(r.input_tokens + r.output_tokens))},
          {"input_tokens", r.input_tokens},
          {"output_tokens", r.output_tokens},
          {"cached_tokens", or_null(r.cached_tokens)},
          {"without_usage", r.without_usage},
          {"failures", ordered_json(r.failures)},
          {"client",
           {{"cpu_s", r.client.cpu_s},
            {"late_p99_s", r.late_p99_s},
            {"connections", r.client.connections},
            {"retries", r.client.retries}}}};
}

std::string report_text(const LoadReport& r) {
  std::string text = fmt::format("{} requests, {} failed, in {:.2f} s\n", r.requests, r.failed, r.duration_s);
  for (const auto& [name, count] : r.failures) {
    text += fmt::format("  {} x {}: {}\n", count, name, r.examples.at(name));
  }
  text += fmt::format("{} input tokens", r.input_tokens);
  if (r.cached_tokens) text += fmt::format(" ({} of them cached)", *r.cached_tokens);
  text += fmt::format(", {} output tokens\n", r.output_tokens);
  if (r.without_usage > 0) {
    text += fmt::format("{} answers without usage: their tokens are counted by chunks\n", r.without_usage);
  }
  text += fmt::format("{:.2f} requests/s, {:.1f} output tokens/s, {:.1f} tokens/s in all\n",
                      r.per_second(static_cast<double>(r.requests - r.failed)),
                      r.per_second(static_cast<double>(r.output_tokens)),
                      r.per_second(static_cast<double>(r.input_tokens + r.output_tokens)));
  if (r.slo) {
    text += fmt::format("goodput {:.2f} requests/s: {} requests within their limits\n",
                        r.per_second(static_cast<double>(r.good_requests)), r.good_requests);
  }
  text += fmt::format("{:<6}{:>12}{:>12}{:>12}{:>12}\n", "ms", "mean", "p50", "p95", "p99");
  text += distribution_row("TTFT", r.ttft_s);
  text += distribution_row("TPOT", r.tpot_s);
  text += distribution_row("ITL", r.itl_s);
  text += distribution_row("E2E", r.e2e_s);
  text += fmt::format("client: {:.2f} s of processor time, {} connections, p99 of starting late {:.2f} ms\n",
                      r.client.cpu_s, r.client.connections, r.late_p99_s * 1e3);
  return text;
}

std::string record_line(const RequestRecord& record) {
  ordered_json line{{"number", record.number},
                    {"due_s", record.due_s},
                    {"start_s", record.start_s},
                    {"status", record.status},
                    {"failure", record.ok() ? ordered_json(nullptr) : ordered_json(record.failure)},
                    {"detail", record.ok() ? ordered_json(nullptr) : ordered_json(record.detail)},
                    {"retry_after_s", or_null(record.retry_after_s)},
                    {"ttft_s", record.ttft_s},
                    {"tpot_s", or_null(record.tpot_s())},
                    {"e2e_s", record.e2e_s},
                    {"input_tokens", record.input_tokens},
                    {"output_tokens", record.output_tokens},
                    {"cached_tokens", or_null(record.cached_tokens)},
                    {"usage_reported", record.usage_reported},
                    {"cost_usd", or_null(record.cost_usd)},
                    {"energy_j", or_null(record.energy_j)},
                    {"node", record.node.empty() ? ordered_json(nullptr) : ordered_json(record.node)},
                    {"itl_s", record.itl_s}};
  return line.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

}  // namespace millrace::bench
