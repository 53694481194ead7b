// `millrace cost`: what tokens cost on a machine, and what a population's would, beside an API's price.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/options.h"
#include "cluster/cost_model.h"

namespace millrace::cli {

namespace {

using nlohmann::ordered_json;

struct CostFlags {
  std::string from;
  BenchFilter filter;
  TokenSpeed speed;
  MachineCost machine;
  std::optional<double> idle_watts, usd_per_kwh;
  std::string tariffs, tariff;
  int cheapest = 6;
  std::optional<double> users, tokens_per_day;
  std::string api_price;
  bool json = false;
};

/// What power costs: in which hours, and how much.
struct Hours {
  std::string name;
  double usd_per_kwh = 0.0;
};

struct CostReport {
  TokenSpeed speed;
  MachineCost machine;
  std::vector<Hours> hours;
  std::vector<TokenCosts> costs;  // of each of `hours`
  std::optional<ApiPrice> api;
  std::optional<Population> population;
};

Result<std::string> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), {});
  if (!file.good() && !file.eof()) return fail("{}: cannot be read", path);
  return text;
}

Result<TokenSpeed> speed_of(const CostFlags& flags) {
  TokenSpeed speed = flags.speed;
  if (!flags.from.empty()) {
    MILLRACE_TRY(const std::string text, read_file(flags.from));
    auto read = read_speed(nlohmann::json::parse(text, nullptr, false), flags.filter);
    if (!read.ok()) return fail("{}: {}", flags.from, read.error().message);
    speed = std::move(*read);
    if (flags.speed.prompt_share) speed.prompt_share = flags.speed.prompt_share;
  }
  MILLRACE_CHECK_OK(check(speed));
  return speed;
}

Result<std::vector<Hours>> hours_of(const CostFlags& flags) {
  constexpr double kMostUsdPerKwh = 100.0;
  if (flags.tariffs.empty()) {
    const double price = flags.usd_per_kwh.value_or(0.0);
    if (!(std::abs(price) <= kMostUsdPerKwh)) {
      return fail("--usd-per-kwh is {}, expected up to {}", price, kMostUsdPerKwh);
    }
    return std::vector{Hours{"all hours", price}};
  }
  MILLRACE_TRY(const std::string csv, read_file(flags.tariffs));
  MILLRACE_TRY(const std::vector<Tariff> tariffs, parse_tariffs(csv, flags.tariffs));
  std::string names;
  for (const Tariff& tariff : tariffs) {
    names += (names.empty() ? "" : ", ") + tariff.name;
    if (tariff.name != flags.tariff) continue;
    return std::vector{Hours{"all hours", tariff.mean()},
                       Hours{fmt::format("{} cheapest hours", flags.cheapest), cheapest_hours(tariff, flags.cheapest)}};
  }
  return fail("{} has no tariff {}; it has {}", flags.tariffs, flags.tariff, names);
}

Result<CostReport> make_report(const CostFlags& flags) {
  CostReport report;
  report.machine = flags.machine;
  report.machine.idle_watts = flags.idle_watts.value_or(flags.machine.busy_watts);
  MILLRACE_TRY(report.speed, speed_of(flags));
  MILLRACE_CHECK_OK(check(report.machine));
  MILLRACE_TRY(report.hours, hours_of(flags));
  for (const Hours& hours : report.hours) {
    report.costs.push_back(token_costs(report.machine, report.speed, hours.usd_per_kwh));
  }
  if (!flags.api_price.empty()) {
    MILLRACE_TRY(report.api, parse_api_price(flags.api_price));
  }
  if (flags.users) {
    report.population = Population{*flags.users, *flags.tokens_per_day};
    MILLRACE_CHECK_OK(check(*report.population));
  }
  const TokenCosts& costs = report.costs.front();
  const bool has_speed = costs.prompt || costs.answer || costs.mixed;
  if (!has_speed && !(report.population && report.api)) {
    return fail(
        "nothing to price: give --from, or --speed, or --prompt-speed and --answer-speed; or --users, --tokens-per-day "
        "and --api-price");
  }
  if (report.population && has_speed && !costs.mixed) {
    return fail("a population's tokens are of prompts and answers: give both speeds, and --prompt-share");
  }
  if (report.api && report.api->prompt != report.api->answer && !report.speed.prompt_share &&
      (report.population || costs.mixed)) {
    return fail("--api-price {} has two prices: give --prompt-share", flags.api_price);
  }
  return report;
}

/// Of the API, for the mixture of tokens that the report is about. Where both kinds cost the same, it has no share.
double mixed_price(const CostReport& report) {
  return report.api->mixed(report.speed.prompt_share.value_or(0.0));
}

ordered_json or_null(const std::optional<double>& value) {
  return value ? ordered_json(*value) : ordered_json(nullptr);
}

ordered_json cost_json(const std::optional<TokenCost>& cost) {
  if (!cost) return nullptr;
  return {{"usd_per_million", cost->usd_per_million}, {"joules_per_token", cost->joules}};
}

ordered_json bill_json(const Bill& bill) {
  return {{"usd_per_day", bill.usd_per_day}, {"usd_per_year", bill.usd_per_year}};
}

ordered_json report_json(const CostReport& report) {
  ordered_json json{{"speed",
                     {{"prompt_tokens_per_second", or_null(report.speed.prompt)},
                      {"answer_tokens_per_second", or_null(report.speed.answer)},
                      {"load_tokens_per_second", or_null(report.speed.load)},
                      {"prompt_share", or_null(report.speed.prompt_share)},
                      {"source", report.speed.source}}},
                    {"machine",
                     {{"usd_per_hour", report.machine.usd_per_hour},
                      {"busy_watts", report.machine.busy_watts},
                      {"idle_watts", report.machine.idle_watts},
                      {"pue", report.machine.pue},
                      {"utilisation", report.machine.utilisation}}},
                    {"costs", ordered_json::array()},
                    {"api", nullptr},
                    {"population", nullptr}};
  for (std::size_t i = 0; i < report.hours.size(); ++i) {
    const TokenCosts& costs = report.costs[i];
    ordered_json row{{"hours", report.hours[i].name},     {"usd_per_kwh", costs.usd_per_kwh},
                     {"prompt", cost_json(costs.prompt)}, {"answer", cost_json(costs.answer)},
                     {"mixed", cost_json(costs.mixed)},   {"api_ratio", nullptr}};
    if (report.api && costs.mixed && costs.mixed->usd_per_million > 0.0) {
      row["api_ratio"] = mixed_price(report) / costs.mixed->usd_per_million;
    }
    json["costs"].push_back(std::move(row));
  }
  if (report.api) {
    json["api"] = {{"prompt_usd_per_million", report.api->prompt}, {"answer_usd_per_million", report.api->answer}};
  }
  if (!report.population) return json;
  const std::optional<TokenCost>& own = report.costs.front().mixed;
  ordered_json& population = json["population"];
  population = {{"users", report.population->users},
                {"tokens_per_day", report.population->tokens_per_day},
                {"own", nullptr},
                {"api", nullptr}};
  if (own) {
    const Fleet machines = fleet(*report.population, report.machine, *own);
    population["own"] = bill_json(bill(*report.population, own->usd_per_million));
    population["own"]["machines"] = machines.machines;
    population["own"]["megawatts"] = machines.megawatts;
    population["own"]["gwh_per_year"] = machines.gwh_per_year;
  }
  if (report.api) population["api"] = bill_json(bill(*report.population, mixed_price(report)));
  return json;
}

std::string dollars(double usd) {
  constexpr double kThousand = 1e3, kMillion = 1e6, kBillion = 1e9;
  if (std::abs(usd) >= kBillion) return fmt::format("${:.1f} B", usd / kBillion);
  if (std::abs(usd) >= kMillion) return fmt::format("${:.1f} M", usd / kMillion);
  if (std::abs(usd) >= kThousand) return fmt::format("${:.1f} k", usd / kThousand);
  return fmt::format("${:.2f}", usd);
}

void print_kind(const char* kind, const std::optional<TokenCost>& cost) {
  if (cost) std::printf("  %-15s %12.4f %18.3f\n", kind, cost->usd_per_million, cost->joules);
}

void print_costs(const CostReport& report) {
  const MachineCost& m = report.machine;
  if (!report.speed.source.empty()) std::printf("measured: %s\n", report.speed.source.c_str());
  std::printf("machine: $%.3f an hour, %.0f W busy, %.0f W idle, PUE %.2f, works %.1f %% of the time\n", m.usd_per_hour,
              m.busy_watts, m.idle_watts, m.pue, m.utilisation * 100.0);
  for (std::size_t i = 0; i < report.hours.size(); ++i) {
    const TokenCosts& costs = report.costs[i];
    std::printf("\n%s, at $%.4f/kWh\n  %-15s %12s %18s\n", report.hours[i].name.c_str(), costs.usd_per_kwh, "tokens",
                "$ per million", "joules per token");
    print_kind("of prompts", costs.prompt);
    print_kind("of answers", costs.answer);
    print_kind("mixed", costs.mixed);
    if (!report.api || !costs.mixed) continue;
    std::printf("  %-15s %12.4f", "the API's", mixed_price(report));
    if (costs.mixed->usd_per_million > 0.0) {
      std::printf("  that is %.2f times as much", mixed_price(report) / costs.mixed->usd_per_million);
    }
    std::printf("\n");
  }
}

void print_bill(const char* whose, const Bill& bill) {
  std::printf("  %-12s %10s a day %12s a year\n", whose, dollars(bill.usd_per_day).c_str(),
              dollars(bill.usd_per_year).c_str());
}

void print_report(const CostReport& report) {
  const std::optional<TokenCost>& own = report.costs.front().mixed;
  if (own || report.costs.front().prompt || report.costs.front().answer) print_costs(report);
  if (!report.population) return;
  std::printf("%s%g users x %g tokens a day\n", own ? "\n" : "", report.population->users,
              report.population->tokens_per_day);
  if (own) {
    const Fleet machines = fleet(*report.population, report.machine, *own);
    print_bill("own machines", bill(*report.population, own->usd_per_million));
    std::printf("    %.0f of them, %.3g MW, %.3g GWh a year\n", machines.machines, machines.megawatts,
                machines.gwh_per_year);
  }
  if (report.api) print_bill("the API", bill(*report.population, mixed_price(report)));
}

Status run_cost(const CostFlags& flags) {
  MILLRACE_TRY(const CostReport report, make_report(flags));
  if (flags.json) {
    std::printf("%s\n", report_json(report).dump().c_str());
  } else {
    print_report(report);
  }
  return Ok{};
}

void add_speed_flags(CLI::App& command, CostFlags& flags) {
  CLI::Option* from = command.add_option(
      "--from", flags.from, "Speeds as measured: what millrace bench --json or bench-serve --json printed");
  command.add_option("--batch", flags.filter.batch, "Of bench's tests of answers: this batch; absent: the fastest")
      ->needs(from);
  command.add_option("--depth", flags.filter.depth, "Of bench's tests: this depth; absent: the fastest")->needs(from);
  CLI::Option* prompt =
      command.add_option("--prompt-speed", flags.speed.prompt, "Tokens of prompts a second, if it does nothing else");
  CLI::Option* answer =
      command.add_option("--answer-speed", flags.speed.answer, "Tokens of answers a second, if it does nothing else");
  CLI::Option* load = command.add_option("--speed", flags.speed.load, "Tokens a second of a load of both");
  for (CLI::Option* option : {prompt, answer, load}) option->excludes(from);
  load->excludes(prompt)->excludes(answer);
  command.add_option("--prompt-share", flags.speed.prompt_share,
                     "Share of the tokens that are of prompts, 0 to 1; absent: as bench-serve has counted it");
}

void add_machine_flags(CLI::App& command, CostFlags& flags) {
  MachineCost& machine = flags.machine;
  command.add_option("--usd-per-hour", machine.usd_per_hour, "Rent or write-off of the machine, $ an hour");
  command.add_option("--watts", machine.busy_watts, "Its power while it works");
  command.add_option("--idle-watts", flags.idle_watts, "Its power while it does not; absent: as --watts");
  command.add_option("--utilisation", machine.utilisation, "Share of the time that it works, above 0 up to 1")
      ->capture_default_str();
  command.add_option("--pue", machine.pue, "Power of the site for each watt of the machine")->capture_default_str();
  CLI::Option* flat = command.add_option("--usd-per-kwh", flags.usd_per_kwh, "Price of electricity");
  CLI::Option* file =
      command.add_option("--tariffs", flags.tariffs, "Prices by the hour: tariff,utc_offset_h,h00,...,h23 (CSV)");
  CLI::Option* name = command.add_option("--tariff", flags.tariff, "Which of them");
  file->excludes(flat)->needs(name);
  name->needs(file);
  command.add_option("--cheapest", flags.cheapest, "Also the costs in so many cheapest hours of the day")
      ->needs(file)
      ->check(CLI::Range(1, 24))
      ->capture_default_str();
}

}  // namespace

void add_cost(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<CostFlags>();
  CLI::App* command = app.add_subcommand("cost", "What tokens cost on a machine, and what a population's would");
  add_speed_flags(*command, *flags);
  add_machine_flags(*command, *flags);
  CLI::Option* users = command->add_option("--users", flags->users, "People in a population");
  CLI::Option* tokens =
      command->add_option("--tokens-per-day", flags->tokens_per_day, "Tokens of each of them a day, prompts included");
  users->needs(tokens);
  tokens->needs(users);
  command->add_option("--api-price", flags->api_price,
                      "To compare with: $ per million tokens, or of prompts and answers as in 3,15");
  command->add_flag("--json", flags->json, "Print one JSON document");
  command->callback([flags, &chosen] { chosen = [flags] { return run_cost(*flags); }; });
}

}  // namespace millrace::cli
