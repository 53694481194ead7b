#include "batches/batch_hours.h"

#include <gtest/gtest.h>

#include <numeric>

#include "core/fnv.h"

namespace millrace {
namespace {

constexpr double kHour = 3600.0;
// Lines that four nodes do in four cheap hours, as far as it is planned with: three of four places, 70 % of the time.
constexpr std::int64_t kCheap = 4 * 4 * 3600 * 3 / 4 * 7 / 10;
constexpr std::int64_t kPlenty = 1'000'000;  // more than any plan lets begin

/// A node on which a line of 1,000 tokens of prompt takes a second, with power that is cheap between these hours.
NodeTerms terms_of(int cheap_from, int cheap_until) {
  NodeTerms terms{.busy_watts = 1000.0};
  terms.tariff.usd_per_kwh.fill(0.3);
  for (int hour = cheap_from; hour < cheap_until; ++hour)
    terms.tariff.usd_per_kwh[static_cast<std::size_t>(hour)] = 0.1;
  return terms;
}

class BatchHoursTest : public testing::Test {
 protected:
  void add(const std::string& name, const NodeTerms& terms, double prefill = 1000.0) {
    const NodeModel model{
        .name = "m", .numeric_class = "c", .speed = {.prefill = prefill, .step = 1e-9, .step_per_sequence = 0.0}};
    table_.set_record({.node = name, .models = {model}}, 1);
    table_.set_terms(name, terms);
    beat(name);
  }
  void beat(const std::string& name, std::int64_t running = 0) {
    table_.beat(name, {.incarnation = 1, .number = ++beats_, .running = running}, Duration{1});
  }
  void add_nodes(int count, const NodeTerms& terms) {
    for (int i = 0; i < count; ++i) add("n" + std::to_string(i), terms);
  }
  [[nodiscard]] std::vector<BatchSupply> supply() const {
    return batch_supply(table_, "m", [](const std::string&, const NodeModel& model) { return model.speed; });
  }
  /// What one gateway may run now of a batch of so many lines of a second each; `deadline`: hours from now.
  std::int64_t may_run(double hour, double deadline, std::int64_t lines, std::int64_t gateways = 1) {
    BatchHours hours;
    hours.set_supply(supply());
    return hours.limits(query_of(hour, deadline, lines, gateways)).at(0);
  }
  static StartQuery query_of(double hour, double deadline, std::int64_t lines, std::int64_t gateways = 1) {
    const auto time = static_cast<std::int64_t>(hour * kHour);
    return {.now = std::chrono::seconds(time),
            .wall = time,
            .gateways = gateways,
            .batches = {{.id = "b",
                         .seconds_left = deadline * kHour,
                         .lines = lines,
                         .own = static_cast<double>(lines) / static_cast<double>(gateways),
                         .prompt_tokens = 1000.0}}};
  }

  NodeTable table_{ClusterTiming{}};
  std::uint64_t beats_ = 0;
};

TEST_F(BatchHoursTest, WaitsForTheCheapHoursOfItsWindow) {
  add_nodes(4, terms_of(2, 6));
  EXPECT_EQ(may_run(12.0, 24.0, 5000), 0) << "at noon";
  EXPECT_EQ(may_run(26.0, 10.0, 5000), 48) << "at two: three places of four, of 64";
  EXPECT_EQ(may_run(12.0, 24.0, 5000, 2), 0);
  EXPECT_EQ(may_run(26.0, 10.0, 5000, 2), 24) << "two gateways share them";
  EXPECT_GE(may_run(29.9, 6.1, 5000), 1) << "the last minutes that are cheap";
}

TEST_F(BatchHoursTest, AShortWindowDoesNotWait) {
  add_nodes(4, terms_of(2, 6));
  EXPECT_GT(may_run(12.0, 1.0, 5000), kPlenty);
  EXPECT_EQ(may_run(12.0, 8.0, 5000), 48) << "no cheap hour before its deadline: at once";
  EXPECT_GT(may_run(25.5, 0.9, 100), kPlenty) << "half an hour before it gets cheap";
}

TEST_F(BatchHoursTest, MoreThanTheCheapHoursTakeBeginsEarlier) {
  add_nodes(4, terms_of(2, 6));
  EXPECT_EQ(may_run(12.0, 24.0, kCheap - 100), 0);
  EXPECT_EQ(may_run(12.0, 24.0, kCheap + 40), 40) << "no more of it than must be";
  EXPECT_GT(may_run(12.0, 24.0, 10 * kCheap), kPlenty) << "there is no room at all for it";
  // Half of the nodes fail: what had room has none any more.
  table_.remove("n2");
  (void)table_.look(std::chrono::seconds(2));
  for (const char* name : {"n0", "n1"})
    table_.beat(name, {.incarnation = 1, .number = ++beats_}, std::chrono::seconds(9));
  (void)table_.look(std::chrono::seconds(10));
  ASSERT_EQ(supply().at(0).count, 2.0);
  EXPECT_EQ(may_run(12.0, 24.0, kCheap - 100), 24) << "all places that there are";
}

TEST_F(BatchHoursTest, GatewaysTogetherBeginWhatOneWould) {
  add_nodes(4, terms_of(2, 6));
  const std::int64_t planned = may_run(12.0, 24.0, kCheap + 40);
  for (const std::int64_t gateways : {2, 3, 7}) {
    const std::int64_t each = may_run(12.0, 24.0, kCheap + 40, gateways);
    EXPECT_GE(gateways * each, planned);
    EXPECT_LT(gateways * (each - 1), planned) << "but for what rounding up gives";
  }
  // Who holds more of it begins more of it.
  StartQuery query = query_of(12.0, 24.0, kCheap + 40, 2);
  query.batches[0].own = 0.9 * static_cast<double>(kCheap + 40);
  BatchHours hours;
  hours.set_supply(supply());
  EXPECT_EQ(hours.limits(query).at(0), 24) << "36 of 40, on its half of 48 places";
}

TEST_F(BatchHoursTest, WhatIsDoneSinceThePlanCountsUntilTheNext) {
  add_nodes(4, terms_of(2, 6));
  BatchHours hours;
  hours.set_supply(supply());
  StartQuery query = query_of(12.0, 24.0, kCheap + 40);
  EXPECT_EQ(hours.limits(query).at(0), 40);
  query.now += std::chrono::milliseconds(500);
  query.batches[0].lines -= 39;
  EXPECT_EQ(hours.limits(query).at(0), 1);
  query.batches[0].lines -= 5;
  EXPECT_EQ(hours.limits(query).at(0), 0);
}

TEST_F(BatchHoursTest, BusyNodesHaveLessRoomAndLinesAreNoLoad) {
  add_nodes(4, terms_of(2, 6));
  for (int i = 0; i < 4; ++i) beat("n" + std::to_string(i), 6);
  EXPECT_EQ(may_run(12.0, 24.0, kCheap / 4), 0);
  EXPECT_GT(may_run(12.0, 24.0, kCheap / 2 + 500), 0) << "half of the room is somebody's";
  BatchHours hours;
  hours.set_supply(supply());
  StartQuery query = query_of(12.0, 24.0, kCheap - 100, 2);
  query.lines_at_beats = 12;  // of two gateways: all that runs
  EXPECT_EQ(hours.limits(query).at(0), 0);
}

TEST_F(BatchHoursTest, ABurstIsNotTakenForTheLoadOfAllHours) {
  add_nodes(4, terms_of(2, 6));
  BatchHours hours;
  const auto may_run = [&](double seconds) {
    hours.set_supply(supply());
    StartQuery query = query_of(12.0, 24.0, kCheap / 2);
    query.now += std::chrono::milliseconds(static_cast<std::int64_t>(1000 * seconds));
    return hours.limits(query).at(0);
  };
  EXPECT_EQ(may_run(0.0), 0);
  for (int i = 0; i < 4; ++i) beat("n" + std::to_string(i), 12);
  EXPECT_EQ(may_run(20.0), 0) << "for some seconds";
  for (double at = 20.0; at < 3600.0; at += 1.0) (void)may_run(at);
  EXPECT_GT(may_run(3600.0), 0) << "for an hour: it will not be less at night";
}

TEST_F(BatchHoursTest, WithoutPricesNothingWaits) {
  EXPECT_GT(may_run(12.0, 24.0, 5000), kPlenty) << "no nodes";
  add_nodes(4, {});
  EXPECT_GT(may_run(12.0, 24.0, 5000), kPlenty) << "no terms";
  NodeTerms watts{.busy_watts = 300.0};
  add("n0", watts);
  EXPECT_GT(may_run(12.0, 24.0, 5000), kPlenty) << "power that costs nothing";
}

TEST_F(BatchHoursTest, ANodeWithoutATariffCostsTheSameAtAllHours) {
  add_nodes(4, {.usd_per_hour = 0.2});
  EXPECT_EQ(may_run(12.0, 24.0, 5000), 48) << "no hour is better than this one";
  add_nodes(4, {.usd_per_hour = 0.2, .busy_watts = 1000.0});
  EXPECT_EQ(may_run(12.0, 24.0, 5000), 48);
  // Beside others it is the one that lines wait for, or that they run on meanwhile.
  add("always", {.usd_per_hour = 0.15, .busy_watts = 1000.0});
  EXPECT_EQ(may_run(12.0, 24.0, 1000), 12);
}

TEST_F(BatchHoursTest, TheFirstLinesTellHowLongOthersTake) {
  add_nodes(4, terms_of(2, 6));
  BatchHours hours;
  hours.set_supply(supply());
  StartQuery query = query_of(12.0, 24.0, 5000);
  query.batches[0].sample = 16;
  EXPECT_EQ(hours.limits(query).at(0), 16);
  query.batches[0].lines -= 10;
  EXPECT_EQ(hours.limits(query).at(0), 6);
}

TEST_F(BatchHoursTest, TheMostUrgentFirstAndEachByItsDeadline) {
  add_nodes(4, terms_of(2, 6));
  BatchHours hours;
  hours.set_supply(supply());
  StartQuery query = query_of(12.0, 0.5, 100'000);  // more than can be done
  query.batches.push_back({.id = "c", .seconds_left = 5 * kHour, .lines = 30, .own = 30, .prompt_tokens = 1000.0});
  query.batches.push_back({.id = "d", .seconds_left = 24 * kHour, .lines = 500, .own = 500, .prompt_tokens = 1000.0});
  const std::vector<std::int64_t> limits = hours.limits(query);
  EXPECT_GT(limits.at(0), kPlenty);
  EXPECT_EQ(limits.at(1), 30);
  EXPECT_EQ(limits.at(2), 0);
}

TEST_F(BatchHoursTest, ClocksThatJumpAndNumbersThatAreNoneStopNothing) {
  add_nodes(4, terms_of(2, 6));
  BatchHours hours;
  hours.set_supply(supply());
  StartQuery query = query_of(12.0, 24.0, 5000);
  EXPECT_EQ(hours.limits(query).at(0), 0);
  query.wall += static_cast<std::int64_t>(14 * kHour);  // it is two now
  query.now += std::chrono::seconds(1);
  EXPECT_EQ(hours.limits(query).at(0), 48);
  query.wall = -1'000'000;
  query.now -= std::chrono::hours(1);
  query.batches[0].seconds_left = -100.0;
  EXPECT_GT(hours.limits(query).at(0), kPlenty);
  query.now += std::chrono::seconds(2);
  query.batches[0] = {.id = "b", .seconds_left = 24 * kHour, .lines = 10, .own = 10, .prompt_tokens = std::nan("")};
  EXPECT_GT(hours.limits(query).at(0), kPlenty);
}

TEST_F(BatchHoursTest, NodesThatAreAlikeArePlannedTogether) {
  const NodeTerms night = terms_of(2, 6);
  add("a", night);
  add("b", night, 1100.0);
  add("fast", night, 9000.0);
  add("day", terms_of(10, 16));
  add("none", night, 0.0);
  const std::vector<BatchSupply> found = supply();
  ASSERT_EQ(found.size(), 3u);
  EXPECT_EQ(found[0].count, 2.0);
  EXPECT_NEAR(found[0].nodes.speed.prefill, 1050.0, 1e-9);
  for (int i = 0; i < 100; ++i) add("z" + std::to_string(i), {.usd_per_hour = 1.0 + i});
  EXPECT_EQ(supply().size(), 64u);
}

}  // namespace
}  // namespace millrace
