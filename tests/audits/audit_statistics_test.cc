// AuditTest and AuditBaseline: what is promised of them, by simulation.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "audits/audit_test.h"

namespace millrace {
namespace {

using Dice = std::mt19937_64;
constexpr double kBound = 0.01;

/// Honest scores that are as bad as they may be, of a mean that is just the bound: mostly none, rarely a large one.
double rare(Dice& dice, double mean) {
  constexpr double kOften = 0.05;
  return std::bernoulli_distribution(kOften)(dice) ? mean / kOften : 0.0;
}
double spread(Dice& dice, double mean) {
  return std::exponential_distribution<double>(1.0 / mean)(dice);
}

/// Of how many nodes, of 2,000, an alarm comes within so many answers.
int alarms(double (*score)(Dice&, double), double mean, int answers) {
  Dice dice(7);
  int alarmed = 0;
  for (int node = 0; node < 2000; ++node) {
    AuditTest test;
    for (int i = 0; i < answers && !test.alarmed(); ++i) test.add(score(dice, mean), kBound);
    alarmed += test.alarmed() ? 1 : 0;
  }
  return alarmed;
}

TEST(AuditTestTest, TheCapitalIsAFairGameAgainstHonestNodes) {
  // Over all ways that ten scores of 0 or twice the bound may come, the mean of the capital stays what it was.
  constexpr int kAnswers = 10;
  double sum = 0.0;
  for (int way = 0; way < 1 << kAnswers; ++way) {
    AuditTest test;
    for (int i = 0; i < kAnswers; ++i) test.add((way >> i & 1) != 0 ? 2.0 * kBound : 0.0, kBound);
    sum += std::exp(test.log_evidence());
  }
  EXPECT_NEAR(sum / (1 << kAnswers), 1.0, 1e-9);
  EXPECT_NEAR(AuditTest().log_evidence(), 0.0, 1e-12);
}

TEST(AuditTestTest, FalseAlarmsStayBelowOnePercentHoweverLongOneLooks) {
  // 20 of 2,000 are allowed; 33 are three standard deviations more.
  EXPECT_LE(alarms(rare, kBound, 1000), 33);
  EXPECT_LE(alarms(spread, kBound, 1000), 33);
  EXPECT_GT(alarms(spread, kBound, 1000), 0) << "these are honest nodes at the very bound";
}

TEST(AuditTestTest, AWrongBoundIsNoticed) {
  EXPECT_GT(alarms(spread, 2.0 * kBound, 1000), 1900);
  EXPECT_GT(alarms(rare, 3.0 * kBound, 1000), 1900);
}

TEST(AuditTestTest, NodesWellBelowTheBoundRaiseNoAlarm) {
  EXPECT_EQ(alarms(spread, kBound / 2.0, 1000), 0);
}

/// Answers until the alarm, after so many honest ones.
int answers_until_alarm(int honest, double mean, Dice& dice) {
  AuditTest test;
  for (int i = 0; i < honest; ++i) test.add(spread(dice, kBound / 10.0), kBound);
  int answers = 0;
  while (!test.alarmed() && answers < 10000) {
    test.add(spread(dice, mean), kBound);
    ++answers;
  }
  return answers;
}

TEST(AuditTestTest, ANodeThatTurnsIsFoundNearlyAsSoonAsOneThatAlwaysLied) {
  Dice dice(3);
  double from_the_start = 0.0, turned = 0.0;
  for (int node = 0; node < 200; ++node) {
    from_the_start += answers_until_alarm(0, 10.0 * kBound, dice) / 200.0;
    turned += answers_until_alarm(5000, 10.0 * kBound, dice) / 200.0;
  }
  EXPECT_LT(from_the_start, 8.0);
  EXPECT_LT(turned, 25.0);
  EXPECT_GT(turned, from_the_start) << "the price of having begun new bets 5,000 times";
}

TEST(AuditTestTest, ANodeThatLiesNowAndThenIsFoundToo) {
  Dice dice(4);
  for (int node = 0; node < 50; ++node) {
    AuditTest test;
    int answers = 0;
    for (; !test.alarmed() && answers < 5000; ++answers) {
      test.add(std::bernoulli_distribution(0.1)(dice) ? 0.3 : 0.0, kBound);
    }
    EXPECT_LT(answers, 1000) << "one lie in ten, thirty times the bound";
  }
}

TEST(AuditTestTest, IsWrittenDownAndReadBack) {
  Dice dice(2);
  AuditTest test;
  EXPECT_EQ(*AuditTest::parse(test.json()), test);
  for (int i = 0; i < 100; ++i) test.add(spread(dice, kBound), kBound);
  auto other = AuditTest::parse(test.json());
  ASSERT_TRUE(other.ok()) << other.error().message;
  EXPECT_EQ(*other, test);
  for (int i = 0; i < 100; ++i) {
    const double score = spread(dice, 20.0 * kBound);
    test.add(score, kBound);
    other->add(score, kBound);
  }
  EXPECT_TRUE(test.alarmed());
  EXPECT_EQ(*other, test) << "it goes on where it was";
  EXPECT_EQ(*AuditTest::parse(test.json()), test);
}

TEST(AuditTestTest, RefusesAStateThatIsNone) {
  for (const char* text : {"", "[]", "{}", R"({"answers":-1,"log_capital":[0,0,0],"alarmed":false})",
                           R"({"answers":1,"log_capital":[0,0],"alarmed":false})",
                           R"({"answers":1,"log_capital":[0,0,"a"],"alarmed":true})",
                           R"({"answers":1,"log_capital":[0,0,0],"alarmed":1})"}) {
    EXPECT_FALSE(AuditTest::parse(text).ok()) << text;
  }
  for (const char* text : {"", "{}", R"({"answers":1,"mean":-1,"squares":0})", R"({"answers":1,"mean":0})"}) {
    EXPECT_FALSE(AuditBaseline::parse(text).ok()) << text;
  }
}

TEST(AuditBaselineTest, TakesItsBoundFromEnoughControls) {
  AuditBaseline baseline;
  for (int i = 0; i < AuditBaseline::kEnough - 1; ++i) baseline.add(1.0);
  EXPECT_EQ(baseline.bound(0.1), 0.1) << "too few";
  AuditBaseline same;
  for (int i = 0; i < 100; ++i) same.add(0.0);
  EXPECT_EQ(same.bound(0.1), 0.1) << "never less than the least";
  Dice dice(6);
  AuditBaseline noisy;
  double sum = 0.0, squares = 0.0;
  for (int i = 0; i < 400; ++i) {
    const double score = spread(dice, 0.02);
    sum += score;
    squares += score * score;
    noisy.add(score);
  }
  const double mean = sum / 400.0, deviation = std::sqrt((squares - 400.0 * mean * mean) / 399.0);
  EXPECT_NEAR(noisy.mean(), mean, 1e-12);
  EXPECT_NEAR(noisy.bound(1e-6), 2.0 * mean + 3.0 * deviation / 20.0, 1e-9);
  EXPECT_EQ(*AuditBaseline::parse(noisy.json()), noisy);
}

}  // namespace
}  // namespace millrace
