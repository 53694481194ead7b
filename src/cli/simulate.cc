// `millrace simulate`: what a cloud would cost, and how well it would serve.

#include <CLI/CLI.hpp>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "bench/trace.h"
#include "cli/options.h"
#include "core/mapped_file.h"
#include "simulate/report.h"
#include "simulate/simulation.h"

namespace millrace::cli {

namespace {

struct SimulateFlags {
  std::string pool, tariffs, trace;
  std::int64_t nodes = 100;
  std::vector<std::string> policies{"round_robin", "least_loaded", "prefix_aware", "cheapest_in_slo"};
  std::vector<std::string> batch_modes{"at_once", "deferred"};
  std::string detail = "requests", churn = "on", start = "2026-01-15T00:00Z";
  double slo_ttft_ms = 2000.0, slo_tpot_ms = 100.0;
  double batch_deadline_h = 24.0;
  double length_scale = 1.0;
  double step_ms = 7.0, step_per_sequence_ms = 0.1, chunk_ms = 50.0;
  int threads = 0;
  WorkloadOptions work;
  PoolBase base;
  SimOptions sim;
  bool json = false;
};

std::optional<int> digits(std::string_view text) {
  int value = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || problem != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// "2026-01-15T00:00Z".
Result<UnixSeconds> parse_start(const std::string& text) {
  const std::string_view view(text);
  const bool shaped =
      view.size() == 17 && view[4] == '-' && view[7] == '-' && view[10] == 'T' && view[13] == ':' && view[16] == 'Z';
  const auto year = shaped ? digits(view.substr(0, 4)) : std::nullopt;
  const auto month = shaped ? digits(view.substr(5, 2)) : std::nullopt;
  const auto day = shaped ? digits(view.substr(8, 2)) : std::nullopt;
  const auto hour = shaped ? digits(view.substr(11, 2)) : std::nullopt;
  const auto minute = shaped ? digits(view.substr(14, 2)) : std::nullopt;
  if (year && month && day && hour && minute && *month > 0 && *day > 0 && *hour >= 0 && *hour < 24 && *minute >= 0 &&
      *minute < 60) {
    const std::chrono::year_month_day date{std::chrono::year(*year), std::chrono::month(static_cast<unsigned>(*month)),
                                           std::chrono::day(static_cast<unsigned>(*day))};
    if (date.ok()) {
      return UnixSeconds(std::chrono::sys_days(date).time_since_epoch() + std::chrono::hours(*hour) +
                         std::chrono::minutes(*minute));
    }
  }
  return fail("--start {}: expected a time such as 2026-01-15T00:00Z", text);
}

/// All runs, on as many threads as there are processors: they have nothing in common but what they read.
std::vector<SimResult> run_all(const std::vector<SimNode>& nodes, const Workload& work,
                               const std::vector<SimOptions>& runs, int threads) {
  std::vector<SimResult> results(runs.size());
  std::atomic<std::size_t> next{0};
  const auto work_off = [&] {
    for (std::size_t run = next++; run < runs.size(); run = next++) {
      const auto began = std::chrono::steady_clock::now();
      results[run] = simulate(nodes, work, runs[run]);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
      std::fprintf(stderr, "%s: %zu requests on %zu nodes in %.2f s\n", policy_name(runs[run].policy),
                   work.requests.size(), nodes.size(), took.count());
    }
  };
  const auto wanted =
      static_cast<std::size_t>(threads > 0 ? threads : static_cast<int>(std::thread::hardware_concurrency()));
  std::vector<std::thread> others;
  for (std::size_t t = 1; t < std::min(std::max<std::size_t>(wanted, 1), runs.size()); ++t)
    others.emplace_back(work_off);
  work_off();
  for (std::thread& other : others) other.join();
  return results;
}

Status run(const SimulateFlags& flags) {
  MILLRACE_TRY(const std::string tariff_text, read_text_file(flags.tariffs));
  MILLRACE_TRY(const std::vector<Tariff> tariffs, parse_tariffs(tariff_text, flags.tariffs));
  MILLRACE_TRY(const std::string pool_text, read_text_file(flags.pool));
  PoolBase base = flags.base;
  base.speed.step = flags.step_ms / 1e3;
  base.chunk_s = flags.chunk_ms / 1e3;
  base.speed.step_per_sequence = flags.step_per_sequence_ms / 1e3;
  MILLRACE_TRY(const std::vector<SimNode> nodes,
               make_pool(pool_text, flags.pool, tariffs, flags.nodes, flags.sim.seed, base));
  MILLRACE_TRY(bench::Trace trace, bench::read_trace(flags.trace));
  MILLRACE_CHECK_OK(bench::scale_trace(trace, 1.0, flags.length_scale));
  WorkloadOptions options = flags.work;
  options.seed = flags.sim.seed;
  options.batch_deadline = flags.batch_deadline_h * 3600.0;
  const Workload work = make_workload(trace, options);
  if (work.requests.empty()) return fail("no request of {} comes within {} hours", flags.trace, options.hours);
  SimOptions sim = flags.sim;
  MILLRACE_TRY(sim.start, parse_start(flags.start));
  sim.ttft_slo = flags.slo_ttft_ms / 1e3;
  sim.tpot_slo = flags.slo_tpot_ms / 1e3;
  sim.churn = flags.churn == "on";
  sim.detail = flags.detail == "protocol" ? SimDetail::protocol : SimDetail::requests;
  std::vector<SimOptions> runs;
  for (const std::string& policy : flags.policies) {
    sim.policy = *find_policy(policy);
    for (const std::string& mode : flags.batch_modes) {
      sim.batch = mode == "deferred" ? BatchMode::deferred : BatchMode::at_once;
      runs.push_back(sim);
      if (options.batch_share <= 0.0) break;  // no batch work: the modes do not differ
    }
  }
  const std::vector<SimResult> results = run_all(nodes, work, runs, flags.threads);
  if (!flags.json) {
    std::fputs(sim_table(results).c_str(), stdout);
    return Ok{};
  }
  nlohmann::ordered_json document{{"pool", flags.pool},
                                  {"tariffs", flags.tariffs},
                                  {"trace", flags.trace},
                                  {"start", flags.start},
                                  {"nodes", nodes.size()},
                                  {"requests", work.requests.size()},
                                  {"rate_scale", options.rate_scale},
                                  {"runs", nlohmann::ordered_json::array()}};
  for (const SimResult& result : results) document["runs"].push_back(sim_json(result));
  std::printf("%s\n", document.dump().c_str());
  return Ok{};
}

void add_cloud_flags(CLI::App& command, SimulateFlags& flags) {
  command.add_option("--pool", flags.pool, "Kinds of nodes, their prices, and how often they fail (JSON)")->required();
  command.add_option("--tariffs", flags.tariffs, "Prices of power by the hour of the day (CSV)")->required();
  command.add_option("--nodes", flags.nodes, "How many")->check(CLI::Range(1, 1 << 20));
  command.add_option("--churn", flags.churn, "Whether nodes fail and come back")->check(CLI::IsMember({"on", "off"}));
  command.add_option("--gateways", flags.sim.gateways, "How many, each with a router of its own")
      ->check(CLI::Range(1, 64));
  command
      .add_option("--prefill", flags.base.speed.prefill,
                  "Tokens of prompts a second of the type that has prefill_rel 1")
      ->check(CLI::PositiveNumber);
  command.add_option("--step-ms", flags.step_ms, "Step of the type that has decode_rel 1, with one sequence")
      ->check(CLI::PositiveNumber);
  command.add_option("--step-per-sequence-ms", flags.step_per_sequence_ms, "… for each further one")
      ->check(CLI::NonNegativeNumber);
  command.add_option("--weights-gb", flags.base.weights_gb, "Of a node's memory that the model takes")
      ->check(CLI::NonNegativeNumber);
  command.add_option("--kv-bytes", flags.base.kv_bytes_per_token, "KV memory of a token")->check(CLI::PositiveNumber);
  command.add_option("--max-places", flags.base.max_places, "Sequences that a node runs at once, at most")
      ->check(CLI::Range(1, 1 << 16));
  command.add_option("--chunk", flags.base.chunk, "Tokens of prompts in a step, at most")->check(CLI::Range(1.0, 1e6));
  command.add_option("--chunk-ms", flags.chunk_ms, "Time that the prompts' part of a step is to take, at most")
      ->check(CLI::PositiveNumber);
}

void add_work_flags(CLI::App& command, SimulateFlags& flags) {
  command.add_option("--trace", flags.trace, "Arrivals and lengths: Azure's CSV or Mooncake's JSON lines")->required();
  command.add_option("--rate-scale", flags.work.rate_scale, "Requests come so many times as fast")
      ->check(CLI::PositiveNumber);
  command.add_option("--length-scale", flags.length_scale, "Multiplies lengths and shared blocks")
      ->check(CLI::PositiveNumber);
  command.add_option("--hours", flags.work.hours, "The trace is played again until then; absent: once")
      ->check(CLI::PositiveNumber);
  command.add_option("--requests", flags.work.requests, "So many; the trace is played again where it has less")
      ->check(CLI::Range(1, 1 << 28));
  command.add_option("--start", flags.start, "Time of the first arrival, such as 2026-01-15T00:00Z");
  command.add_flag("--limits-known", flags.sim.limits_known,
                   "Requests allow no more tokens than their answers have, as those of bench-serve do");
  command.add_option("--slo-ttft-ms", flags.slo_ttft_ms, "Time to the first token that is to be kept")
      ->check(CLI::PositiveNumber);
  command.add_option("--slo-tpot-ms", flags.slo_tpot_ms, "Time for each further token that is to be kept")
      ->check(CLI::PositiveNumber);
  command.add_option("--batch-share", flags.work.batch_share, "Share of requests that are batch work")
      ->check(CLI::Range(0.0, 1.0));
  command.add_option("--batch-deadline-h", flags.batch_deadline_h, "Hours that batch work may take")
      ->check(CLI::PositiveNumber);
  command.add_option("--batch", flags.batch_modes, "Whether batch work waits for cheap hours: at_once, deferred")
      ->delimiter(',')
      ->check(CLI::IsMember({"at_once", "deferred"}));
}

}  // namespace

void add_simulate(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<SimulateFlags>();
  CLI::App* command = app.add_subcommand("simulate", "Simulate a cloud: cost, energy and service by routing policy");
  add_cloud_flags(*command, *flags);
  add_work_flags(*command, *flags);
  command->add_option("--policy", flags->policies, "Policies to compare, with commas between them")
      ->delimiter(',')
      ->check(CLI::IsMember({"round_robin", "least_loaded", "prefix_aware", "cheapest_in_slo"}));
  command->add_option("--detail", flags->detail, "requests, or protocol: every message and step")
      ->check(CLI::IsMember({"requests", "protocol"}));
  command->add_option("--seed", flags->sim.seed, "Of places, prices, failures and batch work");
  command->add_option("--threads", flags->threads, "Policies are simulated side by side; absent: one a processor")
      ->check(CLI::Range(1, 256));
  command->add_flag("--json", flags->json, "Print one JSON document");
  command->callback([flags, &chosen] { chosen = [flags] { return run(*flags); }; });
}

}  // namespace millrace::cli
