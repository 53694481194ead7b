// From the times of single requests to the figures of a run, as vLLM's `bench serve` defines them. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/result.h"

namespace millrace::bench {

/// One request as it was measured; times in seconds.
struct RequestRecord {
  std::int64_t number = 0;
  double due_s = 0.0;    // when it was to start, from the start of the run; with a fixed concurrency its start
  double start_s = 0.0;  // when it did: before a connection was opened for it
  double ttft_s = 0.0;   // from its start to the first chunk with a token
  double e2e_s = 0.0;    // from its start to the last chunk with a token
  std::vector<double> itl_s = {};  // between chunks with tokens: one less than there were such chunks
  std::int64_t input_tokens = 0;   // as the server counts them, where it does; else as planned
  std::int64_t output_tokens = 0;  // as the server counts them, where it does; else chunks with tokens
  std::optional<std::int64_t> cached_tokens = {};
  std::optional<double> cost_usd = {}, energy_j = {};  // where the server says so
  std::string node = {};                               // the same; empty: it did not
  bool usage_reported = false;
  int status = 0;            // of HTTP; 0: there was none
  std::string failure = {};  // a short name, such as "http_429" or "timeout"; empty: it succeeded
  std::string detail = {};   // of the failure, one line
  std::optional<double> retry_after_s = {};

  [[nodiscard]] bool ok() const { return failure.empty(); }
  /// Mean time per output token after the first; nothing where there is only one.
  [[nodiscard]] std::optional<double> tpot_s() const;
};

/// Value at quantile `q` in [0, 1] of ascending samples, at least one: linear between neighbours.
double quantile(std::span<const double> sorted, double q);

struct Distribution {
  double mean = 0.0, p50 = 0.0, p95 = 0.0, p99 = 0.0;
};

/// Exact, from all samples; nothing without any.
std::optional<Distribution> distribution(std::vector<double> samples);

/// Service level objectives: upper limits in seconds.
struct Slo {
  std::optional<double> ttft_s = {}, tpot_s = {}, e2e_s = {};

  [[nodiscard]] bool met_by(const RequestRecord& record) const;
};

/// "ttft:0.5,tpot:0.05,e2e:10", any of them. Error: another name, one twice, a limit that is not above 0.
Result<Slo> parse_slo(const std::string& text);

/// What the client itself took, and how late it was: signs that it, and not the server, was measured.
struct ClientCost {
  double cpu_s = 0.0;        // processor time of the process during the run
  std::int64_t retries = 0;  // requests sent again because the server had closed an idle connection
  std::int64_t connections = 0;
};

struct LoadReport {
  std::int64_t requests = 0, failed = 0;
  double duration_s = 0.0;                           // from the start of the run to the end of its last request
  std::int64_t input_tokens = 0, output_tokens = 0;  // of the requests that succeeded, as all that follows
  std::optional<std::int64_t> cached_tokens = {};    // where the server reported any
  std::int64_t without_usage = 0;                    // whose tokens were counted by chunks
  std::optional<Distribution> ttft_s, tpot_s, itl_s, e2e_s;
  std::optional<Slo> slo = {};
  std::int64_t good_requests = 0;                // within all limits; without any, all that succeeded
  std::map<std::string, std::int64_t> failures;  // by short name
  std::map<std::string, std::string> examples;   // one detail for each
  double late_p99_s = 0.0;                       // start_s - due_s
  ClientCost client = {};

  [[nodiscard]] double per_second(double count) const { return duration_s > 0 ? count / duration_s : 0.0; }
};

/// A request within its limits has TTFT, TPOT (0 with one token) and end-to-end time at most as given.
LoadReport summarize(std::span<const RequestRecord> records, double duration_s, const std::optional<Slo>& slo,
                     const ClientCost& client);

}  // namespace millrace::bench
