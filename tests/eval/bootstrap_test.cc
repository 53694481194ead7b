#include "eval/bootstrap.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

namespace millrace {
namespace {

double mean(std::span<const double> values, std::span<const std::uint32_t> counts) {
  double sum = 0.0, count = 0.0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    sum += counts[i] * values[i];
    count += counts[i];
  }
  return sum / count;
}

TEST(Bootstrap, IntervalOfAMeanIsTheOneOfTheory) {
  std::vector<double> values(400);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i * 7919 % 400) / 400.0;
  const auto interval =
      bootstrap_interval(values.size(), [&](std::span<const std::uint32_t> counts) { return mean(values, counts); });
  ASSERT_TRUE(interval);
  const double middle = std::accumulate(values.begin(), values.end(), 0.0) / 400.0;
  const double half = 1.96 * std::sqrt(1.0 / 12.0 / 400.0);  // a uniform distribution's
  EXPECT_NEAR(interval->first, middle - half, 0.1 * half);
  EXPECT_NEAR(interval->second, middle + half, 0.1 * half);
}

TEST(Bootstrap, SamplesHaveAsManyUnitsAsThereAre) {
  int samples = 0;
  (void)bootstrap_interval(13, [&](std::span<const std::uint32_t> counts) {
    EXPECT_EQ(counts.size(), 13u);
    EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), 0u), 13u);
    ++samples;
    return 0.0;
  });
  EXPECT_EQ(samples, 2000);
}

TEST(Bootstrap, StatisticsTogetherHaveTheIntervalsOfEachAlone) {
  const std::vector<Statistic> statistics{[](Sample counts) { return static_cast<double>(counts.front()); },
                                          [](Sample counts) { return -1.5 * counts.back(); }};
  const std::vector<Interval> intervals = bootstrap_intervals(9, statistics);
  ASSERT_EQ(intervals.size(), 2u);
  for (std::size_t s = 0; s < 2; ++s) EXPECT_EQ(intervals[s], bootstrap_interval(9, statistics[s]));
  EXPECT_EQ(bootstrap_intervals(1, statistics), std::vector<Interval>(2));
}

TEST(Bootstrap, OneUnitHasNoInterval) {
  EXPECT_FALSE(bootstrap_interval(1, [](std::span<const std::uint32_t>) { return 1.0; }));
}

}  // namespace
}  // namespace millrace
