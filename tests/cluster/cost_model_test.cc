#include "cluster/cost_model.h"

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

namespace millrace {
namespace {

using nlohmann::json;

TEST(CostModelTest, TheTalksEstimate) {
  // 10^9 people, 7,000 tokens a day each, at an API's $30 per million tokens: $210 M a day, $76.7 B a year.
  const Bill of_all = bill({.users = 1e9, .tokens_per_day = 7000}, ApiPrice{30, 30}.mixed(0.5));
  EXPECT_DOUBLE_EQ(of_all.usd_per_day, 210e6);
  EXPECT_DOUBLE_EQ(of_all.usd_per_year, 76.65e9);
}

TEST(CostModelTest, ATokenCarriesItsSecondsAndItsShareOfIdleOnes) {
  const MachineCost machine{
      .usd_per_hour = 0.36, .busy_watts = 500, .idle_watts = 100, .pue = 1.2, .utilisation = 0.25};
  EXPECT_DOUBLE_EQ(machine.watts(), 240.0) << "(0.25 * 500 + 0.75 * 100) * 1.2";
  const TokenCosts costs = token_costs(machine, {.prompt = 1000.0, .answer = 50.0, .prompt_share = 0.8}, 0.5);
  // An hour costs 0.36 + 0.24 * 0.5 = 0.48 $ and has 900 busy seconds.
  ASSERT_TRUE(costs.prompt && costs.answer && costs.mixed);
  EXPECT_DOUBLE_EQ(costs.prompt->usd_per_million, 0.48 / 900 / 1000 * 1e6);
  EXPECT_DOUBLE_EQ(costs.answer->usd_per_million, 0.48 / 900 / 50 * 1e6);
  EXPECT_DOUBLE_EQ(costs.answer->joules, 240.0 * 4 / 50) << "four seconds of the site for one of work";
  EXPECT_NEAR(costs.mixed->usd_per_million, 0.8 * costs.prompt->usd_per_million + 0.2 * costs.answer->usd_per_million,
              1e-9);
  EXPECT_NEAR(costs.mixed->joules, 0.8 * costs.prompt->joules + 0.2 * costs.answer->joules, 1e-9);
}

TEST(CostModelTest, ALoadHasOnePrice) {
  const TokenCosts costs = token_costs({.usd_per_hour = 3.6}, {.load = 2000.0, .prompt_share = 0.9}, 0.0);
  EXPECT_FALSE(costs.prompt || costs.answer);
  ASSERT_TRUE(costs.mixed.has_value());
  EXPECT_DOUBLE_EQ(costs.mixed->usd_per_million, 0.5);
  EXPECT_EQ(costs.mixed->joules, 0.0);
  EXPECT_FALSE(token_costs({}, {.prompt = 10.0, .answer = 10.0}, 0.0).mixed) << "nobody has said how they mix";
}

TEST(CostModelTest, APopulationKeepsMachinesBusy) {
  const MachineCost machine{.usd_per_hour = 1.0, .busy_watts = 800, .idle_watts = 200, .utilisation = 0.5};
  const Population population{.users = 86400, .tokens_per_day = 1000};  // 1000 tokens a second
  const TokenCosts costs = token_costs(machine, {.load = 100.0}, 0.1);
  const Fleet machines = fleet(population, machine, *costs.mixed);
  EXPECT_EQ(machines.machines, 20.0) << "ten that work all the time";
  EXPECT_DOUBLE_EQ(machines.megawatts, 0.01);
  EXPECT_DOUBLE_EQ(machines.gwh_per_year, 0.0876);
  // Both ways to the same bill: by tokens, and by machines.
  const double by_machines = 20 * 24 * (1.0 + 0.5 * 0.1);
  EXPECT_NEAR(bill(population, costs.mixed->usd_per_million).usd_per_day, by_machines, 1e-6);
}

TEST(CostModelTest, CheapestHoursAreNoneInARow) {
  Tariff tariff;
  for (std::size_t hour = 0; hour < 24; ++hour) tariff.usd_per_kwh[hour] = hour % 2 == 0 ? 0.3 : 0.1;
  tariff.usd_per_kwh[5] = -0.1;
  EXPECT_DOUBLE_EQ(cheapest_hours(tariff, 1), -0.1);
  EXPECT_DOUBLE_EQ(cheapest_hours(tariff, 2), 0.0);
  EXPECT_DOUBLE_EQ(cheapest_hours(tariff, 24), tariff.mean());
}

TEST(CostModelTest, ReadsWhatBenchPrints) {
  const json bench = json::parse(R"({"machine": null, "tests": [
      {"test": "pp512", "batch": 1, "depth": 0, "tokens_per_second": 900.5},
      {"test": "pp512", "batch": 1, "depth": 4096, "tokens_per_second": 700},
      {"test": "tg128", "batch": 1, "depth": 0, "tokens_per_second": 30},
      {"test": "tg128", "batch": 8, "depth": 0, "tokens_per_second": 140},
      {"test": "tg128", "batch": 8, "depth": 4096, "tokens_per_second": 80},
      {"test": "mixed", "batch": 8, "depth": 0, "tokens_per_second": 99999}]})");
  const auto fastest = read_speed(bench, {});
  ASSERT_TRUE(fastest.ok()) << fastest.error().message;
  EXPECT_EQ(fastest->prompt, 900.5);
  EXPECT_EQ(fastest->answer, 140);
  EXPECT_FALSE(fastest->load || fastest->prompt_share);
  EXPECT_EQ(fastest->source, "pp512 at depth 0; tg128 at batch 8, depth 0");
  const auto deep = read_speed(bench, {.batch = 8, .depth = 4096});
  ASSERT_TRUE(deep.ok());
  EXPECT_EQ(deep->prompt, 700);
  EXPECT_EQ(deep->answer, 80);
  const auto alone = read_speed(bench, {.batch = 1});
  ASSERT_TRUE(alone.ok());
  EXPECT_EQ(alone->prompt, 900.5);
  EXPECT_EQ(alone->answer, 30);
  EXPECT_FALSE(read_speed(bench, {.depth = 7}).ok());
}

TEST(CostModelTest, ReadsWhatBenchServePrints) {
  const json load = json::parse(R"({"requests": 10, "output_tokens_per_second": 50.0, "total_tokens_per_second": 200.0,
                                   "input_tokens": 300, "output_tokens": 100})");
  const auto speed = read_speed(load, {});
  ASSERT_TRUE(speed.ok()) << speed.error().message;
  EXPECT_EQ(speed->load, 200.0);
  EXPECT_EQ(speed->prompt_share, 0.75);
  for (const char* bad : {"[]", "{}", "null", R"({"tests": []})", R"({"tests": [1, {"test": 2}]})",
                          R"({"total_tokens_per_second": "fast", "input_tokens": 1, "output_tokens": 1})",
                          R"({"total_tokens_per_second": 1, "input_tokens": 0, "output_tokens": 0})"}) {
    EXPECT_FALSE(read_speed(json::parse(bad), {}).ok()) << bad;
  }
}

TEST(CostModelTest, NumbersThatCanNotBeAreNamed) {
  const auto message = [](const Status& status) { return status.ok() ? "" : status.error().message; };
  EXPECT_EQ(message(check(MachineCost{.utilisation = 0.0})), "the utilisation is 0, expected 1e-06 to 1");
  EXPECT_EQ(message(check(MachineCost{.utilisation = 1.5})), "the utilisation is 1.5, expected 1e-06 to 1");
  EXPECT_EQ(message(check(MachineCost{.pue = 0.9})), "the PUE is 0.9, expected 1 to 10");
  EXPECT_NE(message(check(MachineCost{.usd_per_hour = -1})), "");
  EXPECT_NE(message(check(MachineCost{.busy_watts = std::numeric_limits<double>::quiet_NaN()})), "");
  EXPECT_NE(message(check(TokenSpeed{.answer = 0.0})), "");
  EXPECT_NE(message(check(TokenSpeed{.load = 1.0, .prompt_share = 1.1})), "");
  EXPECT_NE(message(check(Population{.users = -1})), "");
  EXPECT_EQ(message(check(MachineCost{})), "");
}

TEST(CostModelTest, APriceIsOneOrTwoNumbers) {
  const auto both = parse_api_price("30"), apart = parse_api_price("3,15");
  ASSERT_TRUE(both.ok() && apart.ok());
  EXPECT_EQ(both->mixed(0.3), 30.0);
  EXPECT_EQ(apart->prompt, 3.0);
  EXPECT_EQ(apart->mixed(0.75), 6.0);
  for (const char* bad : {"", "x", "1,", ",1", "1,2,3", "-1", "nan", "1e9", "30 "}) {
    EXPECT_FALSE(parse_api_price(bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace millrace
