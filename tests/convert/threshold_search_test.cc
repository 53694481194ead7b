// Where inputs are left out: first where that loses least, and no more than is wanted.
#include "convert/threshold_search.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

namespace millrace {
namespace {

/// Groups whose losses add up: weight * sparsity ^ 3.
struct Model {
  std::vector<double> weights;
  int measured = 0;

  Result<Divergence> operator()(const Sparsities& sparsities) {
    ++measured;
    Divergence divergence;
    for (std::size_t g = 0; g < weights.size(); ++g) divergence.mean += weights[g] * std::pow(sparsities[g], 3.0);
    divergence.interval = {divergence.mean * 0.9, divergence.mean * 1.1};
    return divergence;
  }
};

double bytes_saved(const Sparsities& sparsities, const std::vector<std::size_t>& bytes) {
  return std::inner_product(sparsities.begin(), sparsities.end(), bytes.begin(), 0.0);
}

TEST(ThresholdSearch, CurvesEndWhereTooMuchIsLost) {
  Model model{{1.0, 100.0}};
  int steps = 0;
  const auto curves = measure_curves(2, 0.1, std::ref(model), [&] { ++steps; });
  ASSERT_TRUE(curves.ok());
  ASSERT_EQ(curves->size(), 2u);
  EXPECT_EQ((*curves)[0].size(), 8u);  // (7/16)^3 = 0.084, (8/16)^3 = 0.125
  EXPECT_EQ((*curves)[1].size(), 2u);  // 100 (1/16)^3 = 0.024
  EXPECT_EQ((*curves)[0][0], 0.0);
  EXPECT_DOUBLE_EQ((*curves)[0][4], 1.0 / 64);
  EXPECT_EQ(steps, 8 + 2);
  EXPECT_EQ(steps, model.measured);
}

TEST(ThresholdSearch, TheNextIncrementIsTheCheapestForAByte) {
  // The second loses as much in all, for four times the bytes; the third more than it is worth.
  const std::vector<std::size_t> bytes{100, 400, 100};
  const GreedyAllocation allocation(bytes, {{0.0, 1.0, 4.0}, {0.0, 1.0, 4.0}, {0.0, 50.0}});
  const double all = 100 * 2 / 16.0 + 400 * 2 / 16.0 + 100 / 16.0;
  EXPECT_EQ(allocation.at(0.0), (Sparsities{0.0, 0.0, 0.0}));
  EXPECT_EQ(allocation.at(25 / all), (Sparsities{0.0, 1 / 16.0, 0.0}));
  EXPECT_EQ(allocation.at(50 / all), (Sparsities{0.0, 2 / 16.0, 0.0}));
  EXPECT_EQ(allocation.at(53.125 / all), (Sparsities{0.5 / 16, 2 / 16.0, 0.0}));  // a part of an increment
  EXPECT_EQ(allocation.at(1.0), (Sparsities{2 / 16.0, 2 / 16.0, 1 / 16.0}));
  double before = 0.0;
  for (double level = 0.1; level <= 1.0; level += 0.1) {
    const double saved = bytes_saved(allocation.at(level), bytes);
    EXPECT_NEAR(saved, level * all, 1e-9);
    EXPECT_GT(saved, before);
    before = saved;
  }
}

TEST(ThresholdSearch, WhatIsNotConvexIsTakenByItsHull) {
  // The first step of group 0 is dear, and both together are cheap.
  const GreedyAllocation allocation({100, 100}, {{0.0, 3.0, 3.5}, {0.0, 2.0, 4.0}});
  EXPECT_EQ(allocation.at(0.5), (Sparsities{2 / 16.0, 0.0}));
}

TEST(ThresholdSearch, GroupsThatLoseTooMuchAtOnceStayWhole) {
  const GreedyAllocation allocation({100, 100}, {{0.0}, {0.0, 1.0}});
  EXPECT_EQ(allocation.at(1.0), (Sparsities{0.0, 1 / 16.0}));
}

TEST(ThresholdSearch, TheLevelIsTheHighestWhoseIntervalKeepsTheTarget) {
  Model model{{1.0}};
  const auto found = highest_level(0.1, [](double level) { return Sparsities{level}; }, std::ref(model), {});
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(model.measured, kLevelSteps);
  EXPECT_LE(found->divergence.interval->second, 0.1);
  EXPECT_NEAR(found->level, std::cbrt(0.1 / 1.1), 1.0 / 256);
  EXPECT_EQ(found->sparsities, Sparsities{found->level});
  const auto none = highest_level(1e-12, [](double level) { return Sparsities{level}; }, std::ref(model), {});
  ASSERT_FALSE(none.ok());
  EXPECT_NE(none.error().message.find("no inputs can be left out within 1e-12 nats"), std::string::npos)
      << none.error().message;
}

TEST(ThresholdSearch, GreedySavesMoreThanOneDensityForAll) {
  Model model{{0.1, 10.0, 1.0}};
  const std::vector<std::size_t> bytes{100, 100, 300};
  const auto curves = measure_curves(3, 0.5, std::ref(model), {});
  ASSERT_TRUE(curves.ok());
  const GreedyAllocation allocation(bytes, *curves);
  const auto greedy = highest_level(0.5, [&](double level) { return allocation.at(level); }, std::ref(model), {});
  const auto uniform = highest_level(0.5, [&](double level) { return Sparsities(3, level); }, std::ref(model), {});
  ASSERT_TRUE(greedy.ok() && uniform.ok());
  EXPECT_GT(bytes_saved(greedy->sparsities, bytes), 1.1 * bytes_saved(uniform->sparsities, bytes));
}

}  // namespace
}  // namespace millrace
