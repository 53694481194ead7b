#include "simulate/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

namespace millrace {

namespace {

using nlohmann::ordered_json;

constexpr double kMillion = 1e6, kJoulesPerKwh = 3.6e6, kMilli = 1e3, kPercent = 100.0, kSecondsPerHour = 3600.0;

constexpr std::pair<RoutePolicy, const char*> kPolicies[] = {{RoutePolicy::round_robin, "round_robin"},
                                                             {RoutePolicy::least_loaded, "least_loaded"},
                                                             {RoutePolicy::prefix_aware, "prefix_aware"},
                                                             {RoutePolicy::cheapest_in_slo, "cheapest_in_slo"}};

double part(double some, double all) {
  return all > 0.0 ? some / all : 0.0;
}

double tokens_of(const SimAnswers& answers) {
  return static_cast<double>(answers.input_tokens + answers.output_tokens);
}

double usd_per_million(const SimAnswers& answers, const SimWork& work) {
  return part(work.usd * kMillion, tokens_of(answers));
}

double attainment(const SimAnswers& answers) {
  return part(static_cast<double>(answers.in_slo), static_cast<double>(answers.requests));
}

double goodput(const SimResult& result) {
  return part(static_cast<double>(result.interactive.in_slo), result.arrivals_s);
}

const char* batch_name(const SimResult& result) {
  if (result.batch.requests == 0) return "";
  return result.options.batch == BatchMode::deferred ? "deferred" : "at_once";
}

ordered_json distribution_json(const std::optional<bench::Distribution>& d) {
  if (!d) return nullptr;
  return {{"mean", d->mean}, {"p50", d->p50}, {"p95", d->p95}, {"p99", d->p99}};
}

ordered_json answers_json(const SimAnswers& answers, const SimWork& work) {
  return {{"requests", answers.requests},
          {"done", answers.done},
          {"failed", answers.failed},
          {"input_tokens", answers.input_tokens},
          {"output_tokens", answers.output_tokens},
          {"cached_tokens", answers.cached_tokens},
          {"ttft_s", distribution_json(answers.ttft_s)},
          {"tpot_s", distribution_json(answers.tpot_s)},
          {"cost_usd", work.usd},
          {"usd_per_million_tokens", usd_per_million(answers, work)},
          {"busy_s", work.busy_s},
          {"energy_kwh", work.energy_j / kJoulesPerKwh},
          {"energy_usd", work.energy_usd}};
}

double milliseconds(const std::optional<bench::Distribution>& d, double bench::Distribution::*which) {
  return d ? (*d).*which * kMilli : 0.0;
}

}  // namespace

const char* policy_name(RoutePolicy policy) {
  return std::ranges::find(kPolicies, policy, &std::pair<RoutePolicy, const char*>::first)->second;
}

std::optional<RoutePolicy> find_policy(std::string_view name) {
  const auto* found = std::ranges::find_if(kPolicies, [&](const auto& policy) { return policy.second == name; });
  if (found == std::end(kPolicies)) return std::nullopt;
  return found->first;
}

std::string sim_table(std::span<const SimResult> results) {
  std::string text = fmt::format("{:<16} {:<9} {:>9} {:>8} {:>8} {:>7} {:>8} {:>8} {:>8} {:>8} {:>9} {:>7} {:>7}\n",
                                 "policy", "batch", "cost $", "$/M tok", "kWh", "in SLO", "goodput", "TTFT ms", "p99",
                                 "TPOT ms", "p99", "moved", "failed");
  for (const SimResult& result : results) {
    const SimAnswers& answers = result.interactive;
    text += fmt::format(
        "{:<16} {:<9} {:>9.4f} {:>8.4f} {:>8.3f} {:>6.2f}% {:>8.3f} {:>8.0f} {:>8.0f} {:>8.1f} {:>9.1f} {:>7} {:>7}\n",
        policy_name(result.options.policy), batch_name(result), result.interactive_work.usd,
        usd_per_million(answers, result.interactive_work), result.interactive_work.energy_j / kJoulesPerKwh,
        attainment(answers) * kPercent, goodput(result), milliseconds(answers.ttft_s, &bench::Distribution::p50),
        milliseconds(answers.ttft_s, &bench::Distribution::p99),
        milliseconds(answers.tpot_s, &bench::Distribution::p50),
        milliseconds(answers.tpot_s, &bench::Distribution::p99), result.migrations, answers.failed);
  }
  const bool batch = std::ranges::any_of(results, [](const SimResult& r) { return r.batch.requests > 0; });
  if (batch) {
    text += fmt::format("\n{:<16} {:<9} {:>9} {:>8} {:>8} {:>10} {:>8} {:>8}\n", "batch work", "", "cost $", "$/M tok",
                        "kWh", "power $", "lines", "late");
    for (const SimResult& result : results) {
      text += fmt::format("{:<16} {:<9} {:>9.4f} {:>8.4f} {:>8.3f} {:>10.5f} {:>8} {:>8}\n",
                          policy_name(result.options.policy), batch_name(result), result.batch_work.usd,
                          usd_per_million(result.batch, result.batch_work), result.batch_work.energy_j / kJoulesPerKwh,
                          result.batch_work.energy_usd, result.batch.done, result.batch.late);
    }
  }
  text +=
      fmt::format("\n{:<16} {:<9} {:>8} {:>9} {:>10} {:>9}\n", "nodes", "", "busy", "failures", "idle kWh", "idle $");
  for (const SimResult& result : results) {
    text += fmt::format("{:<16} {:<9} {:>7.2f}% {:>9} {:>10.2f} {:>9.3f}\n", policy_name(result.options.policy),
                        batch_name(result), result.busy_share * kPercent, result.node_failures,
                        result.idle_work.energy_j / kJoulesPerKwh, result.idle_work.energy_usd);
  }
  return text;
}

ordered_json sim_json(const SimResult& result) {
  ordered_json interactive = answers_json(result.interactive, result.interactive_work);
  interactive["within_slo"] = result.interactive.in_slo;
  interactive["slo_attainment"] = attainment(result.interactive);
  interactive["goodput"] = goodput(result);
  ordered_json batch = nullptr;
  if (result.batch.requests > 0) {
    batch = answers_json(result.batch, result.batch_work);
    batch["late"] = result.batch.late;
    batch["mode"] = batch_name(result);
  }
  ordered_json types = ordered_json::object();
  for (const auto& [name, use] : result.by_type) {
    types[name] = {{"nodes", use.nodes},
                   {"requests", use.requests},
                   {"within_slo", use.in_slo},
                   {"busy_s", use.busy_s},
                   {"cost_usd", use.usd}};
  }
  const SimOptions& options = result.options;
  return {{"policy", policy_name(options.policy)},
          {"detail", options.detail == SimDetail::protocol ? "protocol" : "requests"},
          {"seed", options.seed},
          {"nodes", result.nodes},
          {"slo", {{"ttft_s", options.ttft_slo}, {"tpot_s", options.tpot_slo}}},
          {"interactive", std::move(interactive)},
          {"batch", std::move(batch)},
          {"idle",
           {{"energy_kwh", result.idle_work.energy_j / kJoulesPerKwh},
            {"energy_usd", result.idle_work.energy_usd},
            {"node_hours", result.idle_work.busy_s / kSecondsPerHour}}},
          {"billed_usd", result.billed_usd},
          {"busy_share", result.busy_share},
          {"migrations", result.migrations},
          {"node_failures", result.node_failures},
          {"arrivals_s", result.arrivals_s},
          {"ended_s", result.ended_s},
          {"node_types", std::move(types)}};
}

}  // namespace millrace
