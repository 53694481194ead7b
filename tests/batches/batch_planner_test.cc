#include "batches/batch_planner.h"

#include <gtest/gtest.h>

#include <numeric>

#include "cluster/sim_network.h"

namespace millrace {
namespace {

constexpr double kHour = 3600.0;

/// Cheap between these hours, dear otherwise; a thousand prompt tokens a second, no time for answers.
BatchNodes node_of(int cheap_from, int cheap_until, double spare = 1.0) {
  BatchNodes nodes{.speed = {.prefill = 1000.0, .step = 1e-9, .step_per_sequence = 0.0},
                   .usd_per_hour = 0.1,
                   .watts = 1000.0,
                   .spare = spare};
  nodes.tariff.usd_per_kwh.fill(0.3);
  for (int hour = cheap_from; hour < cheap_until; ++hour) {
    nodes.tariff.usd_per_kwh[static_cast<std::size_t>(hour)] = 0.05;
  }
  return nodes;
}

/// Work of so many node hours.
BatchLines work_of(double hours, double deadline_hour) {
  return {.deadline = UnixSeconds(deadline_hour * kHour), .prompt_tokens = hours * kHour * 1000.0};
}

TEST(BatchPlannerTest, WaitsForTheCheapHoursAndRunsThen) {
  const std::vector<BatchNodes> nodes{node_of(2, 5)};
  const std::vector<BatchLines> lines{work_of(1.0, 20.0)};
  const BatchPlan early = plan_batch(UnixSeconds(0.0), nodes, lines);
  EXPECT_EQ(early.seconds.at(0), 0.0);
  EXPECT_EQ(early.until, UnixSeconds(kHour));
  EXPECT_FALSE(early.late);
  const BatchPlan then = plan_batch(UnixSeconds(2.5 * kHour), nodes, lines);
  EXPECT_EQ(then.until, UnixSeconds(3.0 * kHour));
  // The half hour that is left, as far as it may be used; the rest fits the next cheap hours.
  EXPECT_LE(then.seconds.at(0), 0.7 * 0.5 * kHour + 1e-6);
  EXPECT_FALSE(then.late);
}

TEST(BatchPlannerTest, RunsAtOnceWhereTheDeadlineDoesNotWait) {
  const std::vector<BatchNodes> nodes{node_of(12, 15)};
  const std::vector<BatchLines> urgent{work_of(0.5, 1.0)};
  EXPECT_NEAR(plan_batch(UnixSeconds(0.0), nodes, urgent).seconds.at(0), 0.5 * kHour, 1.0);
  // More than there is room for.
  const std::vector<BatchLines> too_much{work_of(3.0, 1.0)};
  EXPECT_TRUE(plan_batch(UnixSeconds(0.0), nodes, too_much).late);
  // Its deadline has passed: at once.
  const std::vector<BatchLines> passed{work_of(0.1, -1.0)};
  EXPECT_GT(plan_batch(UnixSeconds(0.0), nodes, passed).seconds.at(0), 0.05 * kHour);
}

TEST(BatchPlannerTest, TheUrgentGetRoomBeforeThoseThatMayWait) {
  // Only dear hours before noon; what must be done by ten takes all of them that are needed.
  const std::vector<BatchNodes> nodes{node_of(12, 24)};
  const std::vector<BatchLines> lines{work_of(4.0, 20.0), work_of(5.0, 10.0)};
  const BatchPlan plan = plan_batch(UnixSeconds(0.0), nodes, lines, {.use_of_spare = 1.0, .early_share = 0.0});
  EXPECT_FALSE(plan.late);
  const std::vector<BatchLines> more{work_of(4.0, 20.0), work_of(9.5, 10.0)};
  EXPECT_GT(plan_batch(UnixSeconds(0.0), nodes, more, {.use_of_spare = 1.0, .early_share = 0.0}).seconds.at(0),
            0.5 * kHour)
      << "nearly all hours until ten are needed, this one too";
}

TEST(BatchPlannerTest, TakesTheCheaperPlaceAndThePriceBelowZero) {
  std::vector<BatchNodes> nodes{node_of(0, 24), node_of(0, 24)};
  nodes[1].tariff.usd_per_kwh.fill(-0.02);
  const std::vector<BatchLines> lines{work_of(0.5, 24.0)};
  const BatchPlan plan = plan_batch(UnixSeconds(0.0), nodes, lines);
  EXPECT_EQ(plan.seconds.at(0), 0.0);
  EXPECT_GT(plan.seconds.at(1), 0.0);
  nodes[1].spare = 0.0;
  EXPECT_GT(plan_batch(UnixSeconds(0.0), nodes, lines).seconds.at(0), 0.0);
  EXPECT_EQ(plan_batch(UnixSeconds(0.0), nodes, {}).seconds, (std::vector<double>{0.0, 0.0}));
}

// Hour by hour, whatever the tariffs: where the plan does not call itself late, work is done by its deadline.
TEST(BatchPlannerTest, KeepsEveryDeadlineItDoesNotCallLate) {
  SimDice dice(11);
  int checked = 0;
  for (int round = 0; round < 200; ++round) {
    std::vector<BatchNodes> nodes;
    for (int n = 0; n < 3; ++n) {
      const int from = static_cast<int>(dice.below(20));
      nodes.push_back(node_of(from, from + 4, dice.uniform() * 3.0));
    }
    std::vector<BatchLines> lines;
    for (int i = 0; i < 4; ++i) lines.push_back(work_of(4.0 * dice.uniform(), 2.0 + 22.0 * dice.uniform()));
    if (plan_batch(UnixSeconds(0.0), nodes, lines).late) continue;
    ++checked;
    for (int hour = 0; hour < 24; ++hour) {
      const BatchPlan plan = plan_batch(UnixSeconds(hour * kHour), nodes, lines);
      double tokens = std::accumulate(plan.seconds.begin(), plan.seconds.end(), 0.0) * 1000.0;
      while (tokens > 1.0) {  // the most urgent first, as a runner does
        BatchLines* next = nullptr;
        for (BatchLines& line : lines) {
          if (line.prompt_tokens > 1e-3 && (next == nullptr || line.deadline < next->deadline)) next = &line;
        }
        if (next == nullptr) break;
        const double part = std::min(tokens, next->prompt_tokens);
        next->prompt_tokens -= part;
        tokens -= part;
      }
      for (const BatchLines& line : lines) {
        if (line.deadline < UnixSeconds((hour + 1) * kHour)) {
          EXPECT_LT(line.prompt_tokens, 10.0) << "round " << round << ", hour " << hour;
        }
      }
    }
  }
  EXPECT_GT(checked, 50);
}

}  // namespace
}  // namespace millrace
