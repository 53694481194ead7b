// Recorded scores of honest and lying nodes (bench/audits/record), drawn again and again: who is found, how soon, and
// how often somebody honest is.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <random>
#include <sstream>
#include <vector>

#include "audits/auditor.h"

namespace millrace::test {
namespace {

constexpr int kReplays = 1000;
constexpr int kLiarAnswers = 50, kHonestAnswers = 1000;

struct Recorded {
  bool greedy = false;
  double score = 0.0;
};

struct Case {
  std::string model, relation, node;
  auto operator<=>(const Case&) const = default;
};

std::map<Case, std::vector<Recorded>> read_scores() {
  std::ifstream file(std::string(MILLRACE_SOURCE_DIR) + "/tests/fixtures/audits/scores.csv");
  std::map<Case, std::vector<Recorded>> cases;
  std::string line;
  std::getline(file, line);
  EXPECT_EQ(line, "model,relation,node,temperature,tokens,score");
  while (std::getline(file, line)) {
    std::istringstream fields(line);
    Case of;
    std::string temperature, tokens, score;
    std::getline(fields, of.model, ',');
    std::getline(fields, of.relation, ',');
    std::getline(fields, of.node, ',');
    std::getline(fields, temperature, ',');
    std::getline(fields, tokens, ',');
    std::getline(fields, score, ',');
    cases[of].push_back({std::stod(temperature) == 0.0, std::stod(score)});
  }
  return cases;
}

/// For each replay the number of answers up to the alarm; more than `most` where there was none.
std::vector<int> replay(const std::vector<Recorded>& scores, const AuditBounds& bounds, int most) {
  std::vector<int> needed;
  for (int seed = 0; seed < kReplays; ++seed) {
    std::mt19937_64 dice(static_cast<std::uint64_t>(seed));
    AuditTest test;
    int answers = 0;
    while (!test.alarmed() && answers <= most) {
      const Recorded& recorded = scores[dice() % scores.size()];
      ++answers;
      if (answers <= most) test.add(recorded.score, recorded.greedy ? bounds.greedy : bounds.sampled);
    }
    needed.push_back(answers);
  }
  std::ranges::sort(needed);
  return needed;
}

int alarms_within(const std::vector<int>& needed, int most) {
  return static_cast<int>(std::ranges::count_if(needed, [&](int answers) { return answers <= most; }));
}

double mean_of(const std::vector<Recorded>& scores) {
  double sum = 0.0;
  for (const Recorded& recorded : scores) sum += recorded.score;
  return sum / static_cast<double>(scores.size());
}

TEST(AuditReplay, LiarsAreFoundWithinFiftyAnswers) {
  int liars = 0;
  for (const auto& [of, scores] : read_scores()) {
    if (of.relation != "lie") continue;
    ++liars;
    const std::vector<int> same = replay(scores, kSameClassBounds, kLiarAnswers),
                           alike = replay(scores, kAlikeClassBounds, kLiarAnswers);
    std::printf("%-15s %-40s mean %.5f; found %4d of 1000, half by %2d, 990 by %2d; as if alike %4d, %2d, %2d\n",
                of.model.c_str(), of.node.c_str(), mean_of(scores), alarms_within(same, kLiarAnswers), same[499],
                same[989], alarms_within(alike, kLiarAnswers), alike[499], alike[989]);
    EXPECT_GE(alarms_within(same, kLiarAnswers), 990) << of.model << ": " << of.node;
    // What honest rounding of inputs does to int4, eight bits do to bf16: across classes the two look the same.
    const bool fine = of.node == "int8" || of.node == "fp8_e4m3" || of.node == "keys and values in int4";
    if (!fine) {
      EXPECT_GE(alarms_within(alike, kLiarAnswers), 990) << of.model << ": " << of.node;
    }
  }
  EXPECT_GE(liars, 20) << "of two models: another model, INT4, random tokens, …";
}

TEST(AuditReplay, HonestNodesRaiseNoAlarmInAThousandAnswers) {
  int honest = 0;
  for (const auto& [of, scores] : read_scores()) {
    if (of.relation == "lie") continue;
    ++honest;
    const std::vector<int> needed =
        replay(scores, of.relation == "same" ? kSameClassBounds : kAlikeClassBounds, kHonestAnswers);
    std::printf("%-15s %-40s mean %.7f; false alarms %d of 1000\n", of.model.c_str(), of.node.c_str(), mean_of(scores),
                alarms_within(needed, kHonestAnswers));
    EXPECT_LE(alarms_within(needed, kHonestAnswers), kReplays / 100) << of.model << ": " << of.node;
  }
  EXPECT_GE(honest, 10) << "of two models: the same class, and others";
}

TEST(AuditReplay, TheReplayWouldNoticeABoundThatIsTooLow) {
  for (const auto& [of, scores] : read_scores()) {
    if (of.node != "bf16 for f32 arithmetic") continue;
    const double low = mean_of(scores) / 10.0;
    EXPECT_GE(alarms_within(replay(scores, {low, low}, kHonestAnswers), kHonestAnswers), 990);
  }
}

}  // namespace
}  // namespace millrace::test
