#include "cluster/cost_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string_view>

namespace millrace {

namespace {

using nlohmann::json;

constexpr double kMillion = 1e6, kSecondsPerHour = 3600.0, kHoursPerDay = 24.0, kDaysPerYear = 365.0;
constexpr double kWattsPerKilowatt = 1e3, kWattsPerMegawatt = 1e6, kMegawattsPerGigawatt = 1e3;

std::optional<double> number(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number()) return std::nullopt;
  return found->get<double>();
}

struct BenchTest {
  std::string name;
  double speed = 0.0;
  std::int64_t batch = 0, depth = 0;
};

/// The fastest test whose name begins so, of those that count.
std::optional<BenchTest> fastest(const json& tests, std::string_view kind, const BenchFilter& filter) {
  std::optional<BenchTest> best;
  for (const json& test : tests) {
    if (!test.is_object()) continue;
    const auto name = test.find("test");
    const auto speed = number(test, "tokens_per_second"), batch = number(test, "batch"), depth = number(test, "depth");
    if (name == test.end() || !name->is_string() || !speed || !batch || !depth) continue;
    const BenchTest found{name->get<std::string>(), *speed, static_cast<std::int64_t>(*batch),
                          static_cast<std::int64_t>(*depth)};
    if (!found.name.starts_with(kind)) continue;
    // A prompt is computed alone, at whatever batch others decode.
    if (kind == "tg" && filter.batch && *filter.batch != found.batch) continue;
    if (filter.depth && *filter.depth != found.depth) continue;
    if (!best || found.speed > best->speed) best = found;
  }
  return best;
}

Result<TokenSpeed> speed_of_bench(const json& tests, const BenchFilter& filter) {
  const auto prompt = fastest(tests, "pp", filter), answer = fastest(tests, "tg", filter);
  if (!prompt && !answer) return fail("no test of prompts (pp) or answers (tg) of this batch and depth");
  TokenSpeed speed;
  if (prompt) {
    speed.prompt = prompt->speed;
    speed.source = fmt::format("{} at depth {}", prompt->name, prompt->depth);
  }
  if (answer) {
    speed.answer = answer->speed;
    speed.source +=
        fmt::format("{}{} at batch {}, depth {}", prompt ? "; " : "", answer->name, answer->batch, answer->depth);
  }
  return speed;
}

Status check_number(std::string_view what, double value, double least, double most) {
  if (value >= least && value <= most) return Ok{};  // false of what is no number, too
  return fail("{} is {}, expected {} to {}", what, value, least, most);
}

Status check_speed(std::string_view what, const std::optional<double>& value) {
  constexpr double kLeast = 1e-6, kMost = 1e12;
  return value ? check_number(what, *value, kLeast, kMost) : Ok{};
}

}  // namespace

Result<TokenSpeed> read_speed(const json& document, const BenchFilter& filter) {
  if (!document.is_object()) return fail("no JSON object of millrace bench or bench-serve");
  if (const auto tests = document.find("tests"); tests != document.end() && tests->is_array()) {
    return speed_of_bench(*tests, filter);
  }
  const auto all = number(document, "total_tokens_per_second"), input = number(document, "input_tokens"),
             output = number(document, "output_tokens");
  if (!all || !input || !output) return fail("no document of millrace bench --json or bench-serve --json");
  if (*input + *output <= 0.0) return fail("the load test has no tokens");
  return TokenSpeed{.load = *all,
                    .prompt_share = *input / (*input + *output),
                    .source = fmt::format("a load of {} prompt and {} answer tokens", *input, *output)};
}

Status check(const TokenSpeed& speed) {
  MILLRACE_CHECK_OK(check_speed("the speed of prompts, in tokens a second,", speed.prompt));
  MILLRACE_CHECK_OK(check_speed("the speed of answers, in tokens a second,", speed.answer));
  MILLRACE_CHECK_OK(check_speed("the speed of the load, in tokens a second,", speed.load));
  if (speed.prompt_share) return check_number("the share of prompt tokens", *speed.prompt_share, 0.0, 1.0);
  return Ok{};
}

Status check(const MachineCost& machine) {
  constexpr double kMostUsd = 1e6, kMostWatts = 1e7, kMostPue = 10.0, kLeastUse = 1e-6;
  MILLRACE_CHECK_OK(check_number("the machine's price, in $ an hour,", machine.usd_per_hour, 0.0, kMostUsd));
  MILLRACE_CHECK_OK(check_number("the busy machine's power, in watts,", machine.busy_watts, 0.0, kMostWatts));
  MILLRACE_CHECK_OK(check_number("the idle machine's power, in watts,", machine.idle_watts, 0.0, kMostWatts));
  MILLRACE_CHECK_OK(check_number("the PUE", machine.pue, 1.0, kMostPue));
  return check_number("the utilisation", machine.utilisation, kLeastUse, 1.0);
}

Status check(const Population& population) {
  constexpr double kMostUsers = 1e12, kMostTokens = 1e12;
  MILLRACE_CHECK_OK(check_number("the number of users", population.users, 0.0, kMostUsers));
  return check_number("the number of tokens a day", population.tokens_per_day, 0.0, kMostTokens);
}

TokenCosts token_costs(const MachineCost& machine, const TokenSpeed& speed, double usd_per_kwh) {
  const double watts = machine.watts();
  const double usd_per_busy_second =
      (machine.usd_per_hour + watts / kWattsPerKilowatt * usd_per_kwh) / (kSecondsPerHour * machine.utilisation);
  const auto cost = [&](double busy_seconds) {
    return TokenCost{busy_seconds, kMillion * busy_seconds * usd_per_busy_second,
                     busy_seconds * watts / machine.utilisation};
  };
  TokenCosts costs{.usd_per_kwh = usd_per_kwh};
  if (speed.prompt) costs.prompt = cost(1.0 / *speed.prompt);
  if (speed.answer) costs.answer = cost(1.0 / *speed.answer);
  if (speed.load) {
    costs.mixed = cost(1.0 / *speed.load);
  } else if (speed.prompt && speed.answer && speed.prompt_share) {
    costs.mixed = cost(*speed.prompt_share / *speed.prompt + (1.0 - *speed.prompt_share) / *speed.answer);
  }
  return costs;
}

double cheapest_hours(const Tariff& tariff, int hours) {
  auto prices = tariff.usd_per_kwh;
  std::ranges::sort(prices);
  return std::accumulate(prices.begin(), prices.begin() + hours, 0.0) / hours;
}

Result<ApiPrice> parse_api_price(const std::string& text) {
  constexpr double kMost = 1e6;
  const auto price = [](std::string_view part) -> std::optional<double> {
    double value = 0.0;
    const auto [end, problem] = std::from_chars(part.data(), part.data() + part.size(), value);
    if (problem != std::errc() || end != part.data() + part.size() || !(value >= 0.0 && value <= kMost)) return {};
    return value;
  };
  const std::size_t comma = text.find(',');
  const auto prompt = price(std::string_view(text).substr(0, comma));
  const auto answer = comma == std::string::npos ? prompt : price(std::string_view(text).substr(comma + 1));
  if (prompt && answer) return ApiPrice{*prompt, *answer};
  return fail("an API's price is {}, expected $ per million tokens up to {}: one, or of prompts and answers as in 3,15",
              text, kMost);
}

Bill bill(const Population& population, double usd_per_million) {
  const double day = population.users * population.tokens_per_day / kMillion * usd_per_million;
  return {day, day * kDaysPerYear};
}

Fleet fleet(const Population& population, const MachineCost& machine, const TokenCost& cost) {
  const double tokens_per_second = population.users * population.tokens_per_day / (kHoursPerDay * kSecondsPerHour);
  const double machines = std::ceil(tokens_per_second * cost.busy_seconds / machine.utilisation);
  const double megawatts = machines * machine.watts() / kWattsPerMegawatt;
  return {machines, megawatts, megawatts / kMegawattsPerGigawatt * kHoursPerDay * kDaysPerYear};
}

}  // namespace millrace
