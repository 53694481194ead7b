#include "runtime/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "runtime/test_rows.h"

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

/// What sample() promises, in plain words: edits, the mask, a sort, and cuts of the sorted tokens. Their ids, most
/// likely first, and their probabilities in double precision.
std::vector<std::pair<std::int32_t, double>> kept_tokens(std::vector<float> logits, const SamplingParams& params,
                                                         const std::vector<std::uint32_t>& allowed = {}) {
  for (const auto& [token, bias] : params.logit_bias) logits[static_cast<std::size_t>(token)] += bias;
  std::vector<std::pair<std::int32_t, double>> kept;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const bool may = allowed.empty() || (i / 32 < allowed.size() && ((allowed[i / 32] >> (i % 32)) & 1u) != 0);
    if (may && logits[i] > -kInfinity) kept.emplace_back(i, logits[i]);
  }
  std::stable_sort(kept.begin(), kept.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  if (params.top_k > 0) kept.resize(std::min(kept.size(), static_cast<std::size_t>(params.top_k)));
  const auto normalize = [&] {
    double sum = 0.0;
    for (const auto& [token, weight] : kept) sum += weight;
    for (auto& [token, weight] : kept) weight /= sum;
  };
  const double largest = kept.front().second;
  const double temperature = std::max(static_cast<double>(params.temperature), 4.2396e-39);
  for (auto& [token, value] : kept) value = std::exp((value - largest) / temperature);
  normalize();
  std::size_t size = 0;
  for (double reached = 0.0; size < kept.size() && reached < static_cast<double>(params.top_p); ++size) {
    reached += kept[size].second;
  }
  kept.resize(size);
  std::erase_if(kept, [least = static_cast<double>(params.min_p) * kept.front().second](const auto& entry) {
    return entry.second < least;
  });
  normalize();
  return kept;
}

/// Chi-square against the exact probabilities. Expects at least five draws of each kind, so rare tokens are one kind.
void expect_distribution(const std::vector<float>& logits, const SamplingParams& params,
                         const std::vector<std::uint32_t>& allowed = {}) {
  const int draws = 20000;
  std::unordered_map<std::int32_t, int> counts;
  SamplerScratch scratch;
  std::vector<float> row;
  for (int i = 0; i < draws; ++i) {
    row = logits;
    ++counts[sample(row, params, {}, i, allowed, scratch)];
  }
  double chi_square = 0.0, rare = 0.0;
  int rare_count = 0, kinds = 0, seen = 0;
  const auto add = [&](double expected, int count) {
    chi_square += (count - expected) * (count - expected) / expected;
    ++kinds;
  };
  for (const auto& [token, probability] : kept_tokens(logits, params, allowed)) {
    const double expected = probability * draws;
    seen += counts[token];
    if (expected < 5.0) {
      rare += expected;
      rare_count += counts[token];
    } else {
      add(expected, counts[token]);
    }
  }
  EXPECT_EQ(seen, draws) << "tokens outside the cut were drawn";
  if (rare >= 5.0) add(rare, rare_count);
  // Mean kinds - 1, variance twice that; five standard deviations.
  EXPECT_LE(chi_square, kinds - 1 + 5.0 * std::sqrt(2.0 * kinds)) << kinds << " kinds";
}

TEST(Sampler, DrawsFollowTheExactDistribution) {
  std::mt19937 random(21);
  std::normal_distribution<float> normal;
  for (const float spread : {0.7f, 3.0f}) {
    std::vector<float> logits(600);
    for (float& logit : logits) logit = spread * normal(random);
    logits[3] = std::numeric_limits<float>::quiet_NaN();
    logits[4] = -kInfinity;
    std::vector<std::uint32_t> allowed(logits.size() / 32);  // not even all words
    for (std::uint32_t& word : allowed) word = static_cast<std::uint32_t>(random());
    const std::vector<SamplingParams> settings{
        {.temperature = 1.0f, .seed = 1},
        {.temperature = 0.6f, .logit_bias = {{7, 3.0f}}, .seed = 2},
        {.temperature = 1.0f, .top_k = 40, .seed = 3},
        {.temperature = 1.0f, .top_p = 0.8f, .seed = 4},
        {.temperature = 1.3f, .min_p = 0.1f, .seed = 5},
        {.temperature = 1.0f, .top_p = 0.9f, .min_p = 0.2f, .seed = 6},
        {.temperature = 0.8f, .top_k = 100, .top_p = 0.7f, .min_p = 0.05f, .seed = 7}};
    for (const SamplingParams& params : settings) {
      SCOPED_TRACE("spread " + std::to_string(spread) + ", seed " + std::to_string(params.seed));
      expect_distribution(logits, params);
      expect_distribution(logits, params, allowed);
    }
  }
}

TEST(Sampler, EveryCutOfEveryRowKeepsWhatASortKeeps) {
  std::mt19937 random(22);
  const float temperatures[] = {1.0f, 0.7f, 100.0f, 1e-6f, 1e-40f}, top_ps[] = {1.0f, 0.95f, 0.5f, 1e-6f},
              min_ps[] = {0.0f, 0.05f, 1.0f, 1e-30f};
  const std::int32_t top_ks[] = {0, 2, 40, 3000};
  for (const TestRow& row : test_rows()) {
    const float largest = *std::max_element(row.logits.begin(), row.logits.end(),
                                            [](float a, float b) { return std::isnan(a) ? !std::isnan(b) : a < b; });
    if (std::isnan(largest) || std::isinf(largest)) continue;
    for (int i = 0; i < 12; ++i) {
      SamplingParams params{.temperature = temperatures[random() % 5],
                            .top_k = top_ks[random() % 4],
                            .top_p = top_ps[random() % 4],
                            .min_p = min_ps[random() % 4],
                            .seed = random()};
      // Where the reference and float32 may round differently, tokens next to the border are no mistake, nor are those
      // that are as likely as the last one but for rounding. top-k compares the logits themselves and is exact.
      SamplingParams wider = params;
      wider.top_p = std::min(1.0f, params.top_p + 2e-5f);
      wider.min_p = params.min_p * 0.9999f;
      const auto least = kept_tokens(row.logits, wider).back();
      wider.top_p = 1.0f;
      wider.min_p = 0.0f;
      std::map<std::int32_t, double> within_top_k;
      for (const auto& entry : kept_tokens(row.logits, wider)) within_top_k.insert(entry);
      const double least_likely = within_top_k.at(least.first) * (1.0 - 1e-5);
      for (std::int64_t position = 0; position < 6; ++position) {
        std::vector<std::int32_t> tokens;
        for (const RowKernels* kernels : row_kernels()) {
          SamplerScratch scratch;
          scratch.kernels = kernels;
          std::vector<float> logits = row.logits;
          tokens.push_back(sample(logits, params, {}, position, {}, scratch));
        }
        for (const std::int32_t token : tokens) ASSERT_EQ(token, tokens[0]) << row.name;
        const auto found = within_top_k.find(tokens[0]);
        ASSERT_TRUE(found != within_top_k.end() && found->second >= least_likely)
            << row.name << " of " << row.logits.size() << ", temperature " << params.temperature << ", top_k "
            << params.top_k << ", top_p " << params.top_p << ", min_p " << params.min_p << ": token " << tokens[0];
      }
    }
  }
}

TEST(Sampler, WithoutFiniteLogitsTheLowestAllowedIdIsTaken) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<std::uint32_t> allowed{0b11010};
  for (const float temperature : {0.0f, 1.0f}) {
    const SamplingParams params{.temperature = temperature, .top_k = 3, .top_p = 0.9f};
    for (const float none : {nan, -kInfinity}) {
      std::vector<float> logits(5, none);
      EXPECT_EQ(sample(logits, params, {}, 0), 0);
      logits.assign(5, none);
      EXPECT_EQ(sample(logits, params, {}, 0, allowed), 1);
      logits = {1.0f, none, 2.0f, none, none};
      EXPECT_EQ(sample(logits, params, {}, 0, allowed), 1);
    }
    std::vector<float> logits{1.0f, nan, kInfinity, 2.0f, kInfinity};
    EXPECT_EQ(sample(logits, params, {}, 0), 2);
    logits = {1.0f, nan, kInfinity, 2.0f, kInfinity};
    EXPECT_EQ(sample(logits, params, {}, 0, allowed), 4);
  }
}

TEST(Sampler, OnlyAllowedTokensAreDrawn) {
  std::mt19937 random(23);
  for (const TestRow& row : test_rows()) {
    const std::size_t words = (row.logits.size() + 31) / 32;
    for (const std::uint32_t density : {1u, 3u}) {
      std::vector<std::uint32_t> allowed(words);
      for (std::uint32_t& word : allowed) {
        word = static_cast<std::uint32_t>(density == 1 ? (random() & random() & random()) : (random() | random()));
      }
      const std::size_t sure = random() % row.logits.size();
      allowed[sure / 32] |= 1u << (sure % 32);
      for (const SamplingParams& params :
           {SamplingParams{}, SamplingParams{.temperature = 1.0f}, SamplingParams{.temperature = 1.0f, .top_k = 20},
            SamplingParams{.temperature = 2.0f, .top_p = 0.9f, .logit_bias = {{0, 5.0f}}}}) {
        for (std::int64_t position = 0; position < 5; ++position) {
          std::vector<float> logits = row.logits;
          const auto token = static_cast<std::size_t>(sample(logits, params, {}, position, allowed));
          ASSERT_LT(token, row.logits.size());
          ASSERT_NE((allowed[token / 32] >> (token % 32)) & 1u, 0u) << row.name << ", token " << token;
        }
      }
    }
  }
  // One allowed token is taken whatever the cuts.
  std::vector<float> logits(1000, 1.0f);
  std::vector<std::uint32_t> one(32);
  one[20] = 1u << 9;
  EXPECT_EQ(sample(logits, {.temperature = 1.0f, .top_k = 50, .top_p = 0.5f, .min_p = 0.5f}, {}, 0, one), 649);
}

TEST(Sampler, ScratchHasNoMemoryOfOtherRows) {
  const std::vector<TestRow> rows = test_rows();
  const SamplingParams params{.temperature = 1.0f, .top_k = 1000, .top_p = 0.9f, .min_p = 1e-4f, .seed = 5};
  SamplerScratch used;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const TestRow& row = rows[i * 37 % rows.size()];
    std::vector<float> a = row.logits, b = row.logits;
    ASSERT_EQ(sample(a, params, {}, 3, {}, used), sample(b, params, {}, 3)) << row.name;
  }
}

TEST(Logprobs, AreThoseOfADoubleLogSumExp) {
  for (const TestRow& row : test_rows()) {
    std::vector<std::pair<std::int32_t, double>> exact;  // most likely first
    for (std::size_t i = 0; i < row.logits.size(); ++i) {
      if (row.logits[i] > -kInfinity) exact.emplace_back(i, row.logits[i]);
    }
    std::stable_sort(exact.begin(), exact.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
    if (!exact.empty()) {
      const double largest = exact.front().second;
      double sum = 0.0;
      for (auto& [token, value] : exact) {
        value = value == largest ? 0.0 : value - largest;
        sum += std::exp(value);
      }
      for (auto& [token, value] : exact) value -= std::log(sum);
    }
    for (const RowKernels* kernels : row_kernels()) {
      SCOPED_TRACE(row.name + " of " + std::to_string(row.logits.size()) + ", " + kernels->name);
      SamplerScratch scratch;
      scratch.kernels = kernels;
      const TokenLogprobs last =
          token_logprobs(row.logits, static_cast<std::int32_t>(row.logits.size() - 1), 20, scratch);
      ASSERT_EQ(last.top.size(), std::min<std::size_t>(20, exact.size()));
      const auto expect_near = [](float actual, double expected) {
        if (std::isinf(expected)) {
          EXPECT_EQ(static_cast<double>(actual), expected);
        } else {
          EXPECT_NEAR(static_cast<double>(actual), expected, 2e-6 + 1.2e-7 * std::abs(expected));
        }
      };
      for (std::size_t i = 0; i < last.top.size(); ++i) {
        EXPECT_EQ(last.top[i].first, exact[i].first);
        expect_near(last.top[i].second, exact[i].second);
      }
      for (const auto& [token, value] : exact) {
        if (token % 97 == 0) expect_near(token_logprobs(row.logits, token, 0, scratch).logprob, value);
      }
      if (!(row.logits.back() > -kInfinity)) {
        EXPECT_EQ(last.logprob, -kInfinity);
      }
    }
  }
}

TEST(Logprobs, OfADrawAreOfTheRawLogits) {
  std::mt19937 random(24);
  std::normal_distribution<float> normal;
  std::vector<float> raw(500);
  for (float& logit : raw) logit = normal(random);
  TokenCounts counts;
  for (std::int32_t token = 0; token < 100; ++token) counts.add_prompt(token);
  for (std::int32_t token = 50; token < 150; ++token) counts.add_generated(token);
  std::vector<std::uint32_t> allowed(16, 0x0f0ff0f3u);
  SamplerScratch scratch;
  const SamplingParams params{.temperature = 1.5f,
                              .top_k = 200,
                              .top_p = 0.9f,
                              .repetition_penalty = 1.3f,
                              .presence_penalty = 0.4f,
                              .frequency_penalty = 0.1f,
                              .logit_bias = {{3, 2.0f}, {60, 1.0f}, {400, 3.0f}}};
  bool changed = false, unchanged = false;
  for (std::int64_t position = 0; position < 200; ++position) {
    std::vector<float> logits = raw, plain = raw;
    const SampledToken sampled = sample_with_logprobs(logits, params, counts, position, allowed, 5, scratch);
    ASSERT_EQ(sampled.token, sample(plain, params, counts, position, allowed));
    const TokenLogprobs expected = token_logprobs(raw, sampled.token, 5);
    ASSERT_EQ(sampled.logprobs.logprob, expected.logprob);
    ASSERT_EQ(sampled.logprobs.top, expected.top);
    changed = changed || sampled.token < 150 || sampled.token == 400;
    unchanged = unchanged || (sampled.token >= 150 && sampled.token != 400);
  }
  EXPECT_TRUE(changed && unchanged);
  EXPECT_TRUE(sample_with_logprobs(raw, params, counts, 0, allowed, 0, scratch).logprobs.top.empty());
}

TEST(TokenCounts, AreThoseOfAMap) {
  std::mt19937 random(25);
  TokenCounts counts;
  std::unordered_map<std::int32_t, std::pair<int, int>> expected;
  for (int i = 0; i < 20000; ++i) {
    const auto token = static_cast<std::int32_t>(random() % 3000 * (random() % 2 == 0 ? 1 : 64));
    if (random() % 3 == 0) {
      counts.add_generated(token);
      ++expected[token].second;
    } else {
      counts.add_prompt(token);
      ++expected[token].first;
    }
  }
  ASSERT_EQ(counts.entries().size(), expected.size());
  for (const TokenCounts::Entry& entry : counts.entries()) {
    ASSERT_EQ(std::pair(entry.prompt, entry.generated), expected.at(entry.token));
  }
}

TEST(Sampler, CountsAreNeededForPenaltiesOnly) {
  EXPECT_FALSE(needs_counts({.temperature = 1.0f, .top_k = 5, .logit_bias = {{1, 1.0f}}}));
  EXPECT_TRUE(needs_counts({.repetition_penalty = 1.1f}));
  EXPECT_TRUE(needs_counts({.presence_penalty = -0.5f}));
  EXPECT_TRUE(needs_counts({.frequency_penalty = 0.5f}));
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
