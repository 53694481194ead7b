// What tokens cost: from a machine's speed, price and power to $ per million tokens, and to the bill of a population.
// Pure; docs/cost.md has the same formulae in words.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "cluster/tariff.h"
#include "core/result.h"

namespace millrace {

/// Tokens a second of a machine that works: of prompts and of answers, each as if it did nothing else, or of a load
/// that mixes them.
struct TokenSpeed {
  std::optional<double> prompt = {}, answer = {};
  std::optional<double> load = {};
  std::optional<double> prompt_share = {};  // of the tokens that are asked for: those of prompts, 0 to 1
  std::string source = {};                  // where it is from, for people
};

/// Which tests of `millrace bench` count; none given: all.
struct BenchFilter {
  std::optional<std::int64_t> batch = {}, depth = {};
};
/// From the document of `millrace bench --json`, the fastest of its pp and of its tg tests, or from that of
/// `millrace bench-serve --json`, a load with its share of prompts. Error: it is neither, or has no such test.
Result<TokenSpeed> read_speed(const nlohmann::json& document, const BenchFilter& filter);

struct MachineCost {
  double usd_per_hour = 0.0;  // rent or write-off, of every hour, busy or not
  double busy_watts = 0.0, idle_watts = 0.0;
  double pue = 1.0;          // power of the site for each watt of the machine
  double utilisation = 1.0;  // share of the time that it works

  /// Of the site, on average.
  [[nodiscard]] double watts() const { return (utilisation * busy_watts + (1.0 - utilisation) * idle_watts) * pue; }
};

struct Population {
  double users = 0.0, tokens_per_day = 0.0;  // of each user, prompts included
};

/// Errors: name the number that cannot be, and what may be.
Status check(const TokenSpeed& speed);
Status check(const MachineCost& machine);
Status check(const Population& population);

/// Idle time is shared among the tokens.
struct TokenCost {
  double busy_seconds = 0.0;  // of a machine, for a token
  double usd_per_million = 0.0;
  double joules = 0.0;  // for a token, at the site's meter
};
struct TokenCosts {
  double usd_per_kwh = 0.0;
  std::optional<TokenCost> prompt = {}, answer = {};  // where their speeds are known
  std::optional<TokenCost> mixed = {};                // of the load, or of both by their shares
};

///   $ per million = 1e6 * s * ($/h + W / 1000 * $/kWh) / (3600 * u),   joules = s * W / u
///
/// with s the busy seconds of a token, W the site's mean watts and u the utilisation.
TokenCosts token_costs(const MachineCost& machine, const TokenSpeed& speed, double usd_per_kwh);

/// Mean of the `hours` cheapest of the day's 24, $/kWh.
double cheapest_hours(const Tariff& tariff, int hours);

/// What an API takes for a million tokens, $.
struct ApiPrice {
  double prompt = 0.0, answer = 0.0;

  [[nodiscard]] double mixed(double prompt_share) const {
    return prompt_share * prompt + (1.0 - prompt_share) * answer;
  }
};
/// "30" for both, or "3,15". Error: it is neither.
Result<ApiPrice> parse_api_price(const std::string& text);

struct Bill {
  double usd_per_day = 0.0, usd_per_year = 0.0;  // of 365 days
};
Bill bill(const Population& population, double usd_per_million);

/// The machines that a population keeps busy as much as their utilisation says, with its tokens spread evenly over the
/// day, and the power of their site.
struct Fleet {
  double machines = 0.0, megawatts = 0.0, gwh_per_year = 0.0;
};
Fleet fleet(const Population& population, const MachineCost& machine, const TokenCost& cost);

}  // namespace millrace
