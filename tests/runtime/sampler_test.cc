#include "runtime/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <vector>

namespace millrace {
namespace {

std::int32_t draw(std::vector<float> logits, const SamplingParams& params, std::int64_t position,
                  const TokenCounts& counts = {}) {
  return sample(logits, params, counts, position);
}

std::map<std::int32_t, int> histogram(const std::vector<float>& logits, const SamplingParams& params, int draws) {
  std::map<std::int32_t, int> counts;
  for (int i = 0; i < draws; ++i) ++counts[draw(logits, params, i)];
  return counts;
}

TEST(Sampler, GreedyTakesTheLowestIdAmongEquals) {
  EXPECT_EQ(draw({1.0f, 3.0f, 3.0f, 2.0f}, {}, 0), 1);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(draw({nan, 1.0f, nan, 2.0f}, {}, 0), 3);
}

TEST(Sampler, FrequenciesFollowTheSoftmax) {
  const std::vector<float> logits{0.0f, std::log(2.0f), std::log(5.0f), -std::numeric_limits<float>::infinity()};
  const int draws = 40000;
  auto counts = histogram(logits, {.temperature = 1.0f, .seed = 3}, draws);
  // Standard deviation of each share is at most 0.0025; five of them.
  EXPECT_NEAR(counts[0] / double(draws), 1.0 / 8, 0.0125);
  EXPECT_NEAR(counts[1] / double(draws), 2.0 / 8, 0.0125);
  EXPECT_NEAR(counts[2] / double(draws), 5.0 / 8, 0.0125);
  EXPECT_EQ(counts[3], 0);
}

TEST(Sampler, TemperatureSharpens) {
  const std::vector<float> logits{0.0f, std::log(2.0f)};
  const int draws = 40000;
  auto counts = histogram(logits, {.temperature = 0.5f, .seed = 4}, draws);
  EXPECT_NEAR(counts[1] / double(draws), 0.8, 0.0125);  // 4 : 1
}

TEST(Sampler, TopKTopPAndMinPCutTheTail) {
  const std::vector<float> logits{std::log(0.4f), std::log(0.3f), std::log(0.2f), std::log(0.1f)};
  EXPECT_EQ(histogram(logits, {.temperature = 1.0f, .top_k = 2}, 2000).size(), 2u);
  EXPECT_EQ(histogram(logits, {.temperature = 1.0f, .top_p = 0.65f}, 2000).size(), 2u);
  EXPECT_EQ(histogram(logits, {.temperature = 1.0f, .top_p = 0.75f}, 2000).size(), 3u);
  EXPECT_EQ(histogram(logits, {.temperature = 1.0f, .top_p = 1e-6f}, 100).size(), 1u);
  EXPECT_EQ(histogram(logits, {.temperature = 1.0f, .min_p = 0.45f}, 2000).size(), 3u);
  EXPECT_EQ(histogram(logits, {.temperature = 1.0f, .min_p = 1.0f}, 100).size(), 1u);
}

TEST(Sampler, TheDrawIsAFunctionOfSeedChoiceAndPosition) {
  const std::vector<float> logits(1000, 0.0f);
  const SamplingParams params{.temperature = 1.0f, .seed = 11, .choice = 2};
  EXPECT_EQ(draw(logits, params, 5), draw(logits, params, 5));
  SamplingParams other_seed = params, other_choice = params;
  other_seed.seed = 12;
  other_choice.choice = 3;
  int same = 0;
  for (int position = 0; position < 100; ++position) {
    same += draw(logits, params, position) == draw(logits, other_seed, position);
    same += draw(logits, params, position) == draw(logits, other_choice, position);
    same += draw(logits, params, position) == draw(logits, params, position + 1);
  }
  EXPECT_LT(same, 10);  // 0.3 expected by chance
}

TEST(Sampler, PenaltiesAndBias) {
  TokenCounts counts;
  counts.add_prompt(0);
  counts.add_generated(1);
  counts.add_generated(1);
  EXPECT_EQ(draw({2.0f, 1.9f, 1.2f}, {.repetition_penalty = 2.0f}, 0, counts), 2);
  EXPECT_EQ(draw({-1.0f, -1.0f, -1.5f}, {.repetition_penalty = 2.0f}, 0, counts), 2);  // negatives are multiplied
  EXPECT_EQ(draw({1.0f, 1.8f, 0.0f}, {.frequency_penalty = 0.5f}, 0, counts), 0);
  EXPECT_EQ(draw({1.0f, 1.4f, 0.0f}, {.presence_penalty = 0.5f}, 0, counts), 0);
  EXPECT_EQ(draw({1.0f, 1.8f, 0.0f}, {.presence_penalty = 0.5f}, 0, counts), 1);
  EXPECT_EQ(draw({1.0f, 1.8f, 0.0f}, {.logit_bias = {{2, 50.0f}}}, 0, counts), 2);
}

TEST(Sampler, BadValuesAreNamed) {
  const auto message = [](const SamplingParams& params) {
    const Status status = validate(params, 10);
    return status.ok() ? std::string("ok") : status.error().message;
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(message({}), "ok");
  EXPECT_NE(message({.temperature = -1.0f}).find("temperature"), std::string::npos);
  EXPECT_NE(message({.temperature = nan}).find("temperature"), std::string::npos);
  EXPECT_NE(message({.top_k = -1}).find("top_k"), std::string::npos);
  EXPECT_NE(message({.top_p = 0.0f}).find("top_p"), std::string::npos);
  EXPECT_NE(message({.top_p = nan}).find("top_p"), std::string::npos);
  EXPECT_NE(message({.min_p = 1.5f}).find("min_p"), std::string::npos);
  EXPECT_NE(message({.repetition_penalty = 0.0f}).find("repetition_penalty"), std::string::npos);
  EXPECT_NE(message({.presence_penalty = 3.0f}).find("presence_penalty"), std::string::npos);
  EXPECT_NE(message({.frequency_penalty = -3.0f}).find("frequency_penalty"), std::string::npos);
  EXPECT_NE(message({.logit_bias = {{10, 1.0f}}}).find("token 10"), std::string::npos);
  EXPECT_NE(message({.logit_bias = {{1, 200.0f}}}).find("token 1"), std::string::npos);
}

}  // namespace
}  // namespace millrace
