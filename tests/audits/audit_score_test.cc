#include "audits/audit_score.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "core/philox.h"

namespace millrace {
namespace {

using Dice = std::mt19937_64;

std::vector<float> made_logits(std::size_t vocab, Dice& dice, float spread = 3.0f) {
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> logits(vocab);
  for (float& logit : logits) logit = normal(dice);
  return logits;
}

SamplingParams made_params(Dice& dice) {
  const auto one_of = [&](auto... values) {
    const float all[] = {static_cast<float>(values)...};
    return all[dice() % sizeof...(values)];
  };
  SamplingParams params;
  params.temperature = one_of(0.0, 0.3, 0.8, 1.0, 1.5);
  params.top_p = one_of(1.0, 0.95, 0.6, 0.1);
  params.min_p = one_of(0.0, 0.0, 0.05, 0.5);
  params.top_k = static_cast<std::int32_t>(one_of(0, 0, 1, 5, 40, 500));
  params.seed = dice();
  params.choice = static_cast<std::uint32_t>(dice() % 3);
  return params;
}

double distance(std::vector<float> logits, std::int32_t token, const SamplingParams& params, std::int64_t position,
                std::int32_t top = kAuditTop) {
  return token_distance(token_logprobs(logits, token, top), token, params, position,
                        static_cast<std::int64_t>(logits.size()));
}

TEST(AuditScoreTest, WhatTheReferenceDrawsItselfIsRight) {
  Dice dice(1);
  for (const std::size_t vocab : {5u, 100u, 128u, 1000u, 4096u}) {
    for (int i = 0; i < 400; ++i) {
      const std::vector<float> logits = made_logits(vocab, dice);
      const SamplingParams params = made_params(dice);
      std::vector<float> scratch = logits;
      const std::int32_t token = sample(scratch, params, {}, i);
      EXPECT_LE(distance(logits, token, params, i), 1e-5)
          << vocab << " tokens, temperature " << params.temperature << ", top_p " << params.top_p << ", top_k "
          << params.top_k << ", min_p " << params.min_p;
    }
  }
}

TEST(AuditScoreTest, IsTheMassBetweenTheRandomNumberAndTheToken) {
  const std::vector<float> logits{std::log(0.5f), std::log(0.3f), std::log(0.2f)};
  SamplingParams params{.temperature = 1.0f};
  const std::vector<double> begins{0.0, 0.5, 0.8}, ends{0.5, 0.8, 1.0};
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    params.seed = seed;
    const auto uniform = static_cast<double>(philox_uniform(seed, 0, 7));
    for (std::int32_t token = 0; token < 3; ++token) {
      const auto i = static_cast<std::size_t>(token);
      const double expected = std::max({0.0, begins[i] - uniform, uniform - ends[i]});
      EXPECT_NEAR(distance(logits, token, params, 7), expected, 1e-6);
    }
  }
}

TEST(AuditScoreTest, OfGreedyAnswersIsADifferenceOfProbabilities) {
  const std::vector<float> logits{std::log(0.5f), std::log(0.3f), std::log(0.2f)};
  for (const SamplingParams& params : {SamplingParams{}, SamplingParams{.temperature = 0.9f, .top_k = 1}}) {
    EXPECT_NEAR(distance(logits, 0, params, 0), 0.0, 1e-6);
    EXPECT_NEAR(distance(logits, 1, params, 0), 0.2, 1e-6);
    EXPECT_NEAR(distance(logits, 2, params, 0), 0.3, 1e-6);
  }
}

TEST(AuditScoreTest, OfWhatACutExcludesTheMassBeyondTheCutCountsToo) {
  const std::vector<float> logits{std::log(0.6f), std::log(0.3f), std::log(0.1f)};
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const double before = std::max(0.0, 0.9 - static_cast<double>(philox_uniform(seed, 0, 0)));
    const auto excluded = [&](SamplingParams params) {
      params.temperature = 1.0f;
      params.seed = seed;
      return distance(logits, 2, params, 0);
    };
    EXPECT_NEAR(excluded({.top_k = 2}), 0.1 + before, 1e-6);
    EXPECT_NEAR(excluded({.top_p = 0.8f}), 0.1 + before, 1e-6);
    EXPECT_NEAR(excluded({.min_p = 0.4f}), 0.1 + before, 1e-6);
    EXPECT_NEAR(excluded({.top_p = 0.3f}), std::min(1.0, 0.4 + before), 1e-6);
    // Next to a cut it may be on either side.
    EXPECT_NEAR(excluded({.top_p = 0.899f}), before, 1e-6);
    EXPECT_NEAR(excluded({.min_p = 0.18f}), before, 1e-6);
  }
  // Of a token that was not said, it is all that the cut leaves: all but the hundred alike that were.
  const std::vector<float> many(1000, 0.0f);
  EXPECT_NEAR(distance(many, 999, {.temperature = 1.0f, .top_k = 10}, 0, 100), 0.9, 1e-6);
}

TEST(AuditScoreTest, OfTheTailNothingIsHeldAgainstTheNode) {
  // Ten tokens are said of a thousand alike: whatever came may have been right, but not everywhere.
  const std::vector<float> logits(1000, 0.0f);
  SamplingParams params{.temperature = 1.0f};
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    params.seed = seed;
    EXPECT_EQ(distance(logits, static_cast<std::int32_t>(20 + seed * 40), params, 3, 10), 0.0);
  }
  // With a low temperature the tail cannot weigh much.
  std::vector<float> steep(1000, 0.0f);
  for (std::size_t i = 0; i < 20; ++i) steep[i] = static_cast<float>(20 - i);
  params.temperature = 0.7f;
  int missed = 0;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    params.seed = seed;
    missed += distance(steep, 500, params, 3, 20) > 0.0 ? 1 : 0;
  }
  EXPECT_GE(missed, 99);
}

/// The mean score of answers whose node has logits that are off by this much.
double mean_score(double error, const SamplingParams& like) {
  Dice dice(5);
  std::normal_distribution<float> off(0.0f, static_cast<float>(error));
  double sum = 0.0;
  constexpr int kPlaces = 4000;
  for (int i = 0; i < kPlaces; ++i) {
    const std::vector<float> logits = made_logits(300, dice);
    std::vector<float> at_node = logits;
    for (float& logit : at_node) logit += off(dice);
    SamplingParams params = like;
    params.seed = dice();
    sum += distance(logits, sample(at_node, params, {}, i), params, i);
  }
  return sum / kPlaces;
}

TEST(AuditScoreTest, GrowsWithTheSquareOfTheError) {
  for (const SamplingParams& params :
       {SamplingParams{}, SamplingParams{.temperature = 0.8f}, SamplingParams{.temperature = 1.0f, .top_p = 0.9f}}) {
    const double little = mean_score(0.02, params), much = mean_score(0.2, params);
    EXPECT_GT(little, 0.0);
    EXPECT_GT(much / little, 40.0) << params.temperature;
    EXPECT_LT(much / little, 400.0) << params.temperature;
  }
}

TEST(AuditScoreTest, AnAnswerHasTheMeanOfItsTokens) {
  const std::vector<float> logits{std::log(0.5f), std::log(0.3f), std::log(0.2f)};
  std::vector<ReferredToken> tokens;
  for (std::int32_t token = 0; token < 3; ++token) tokens.push_back({token, token_logprobs(logits, token, 3)});
  EXPECT_NEAR(answer_score(tokens, {}, 10, 3), (0.0 + 0.2 + 0.3) / 3.0, 1e-6);
  // Positions count up: the draws are those of the places 10, 11 and 12.
  const SamplingParams params{.temperature = 1.0f, .seed = 9};
  double sum = 0.0;
  for (std::int32_t token = 0; token < 3; ++token) sum += distance(logits, token, params, 10 + token);
  EXPECT_NEAR(answer_score(tokens, params, 10, 3), sum / 3.0, 1e-9);
}

TEST(AuditScoreTest, KnowsWhatItCannotScore) {
  Placement placement;
  placement.sampling = {.temperature = 0.7f, .top_k = 40, .top_p = 0.9f};
  EXPECT_TRUE(can_score(placement));
  placement.sampling.frequency_penalty = 0.5f;
  EXPECT_FALSE(can_score(placement));
  placement.sampling.frequency_penalty = 0.0f;
  placement.sampling.logit_bias = {{3, 1.0f}};
  EXPECT_FALSE(can_score(placement));
  placement.sampling.logit_bias.clear();
  placement.grammar = GrammarSpec{};
  EXPECT_FALSE(can_score(placement));
}

}  // namespace
}  // namespace millrace
