#include "bench/prompt.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "bench/arrivals.h"

namespace millrace::bench {
namespace {

constexpr TokenRange kRange{100, 1100};

std::vector<std::int32_t> ids(const std::vector<PromptPart>& parts, std::uint64_t seed = 1) {
  return prompt_ids(parts, seed, kRange);
}

TEST(PromptIds, AreAFunctionOfSeedUseAndNumber) {
  const std::vector<std::int32_t> block = ids({{Stream::trace_block, 7, 500}});
  EXPECT_EQ(block, ids({{Stream::trace_block, 7, 500}}));
  for (std::uint32_t i = 0; i < 500; ++i) EXPECT_EQ(block[i], stream_token(1, Stream::trace_block, 7, i, kRange));
  for (const std::int32_t id : block) EXPECT_TRUE(id >= kRange.first && id < kRange.end);
  EXPECT_NE(block, ids({{Stream::trace_block, 8, 500}}));
  EXPECT_NE(block, ids({{Stream::request, 7, 500}}));
  EXPECT_NE(block, ids({{Stream::trace_block, 7, 500}}, 2));
  EXPECT_NE(block, ids({{Stream::trace_block, (std::uint64_t{1} << 32) + 7, 500}}));
  const std::vector<std::int32_t> shorter = ids({{Stream::trace_block, 7, 33}});
  EXPECT_TRUE(std::equal(shorter.begin(), shorter.end(), block.begin()));
}

TEST(PromptIds, CoverTheRangeEvenly) {
  std::vector<int> seen(static_cast<std::size_t>(kRange.end));
  constexpr int kDraws = 200000;
  for (const std::int32_t id : ids({{Stream::request, 0, kDraws}})) ++seen[static_cast<std::size_t>(id)];
  const double expected = static_cast<double>(kDraws) / (kRange.end - kRange.first);
  double chi_square = 0;
  for (std::int32_t id = kRange.first; id < kRange.end; ++id) {
    chi_square += std::pow(seen[static_cast<std::size_t>(id)] - expected, 2) / expected;
  }
  EXPECT_NEAR(chi_square, 999, 5 * std::sqrt(2 * 999.0));  // mean and deviation of chi square with 999 degrees
}

TEST(TracePrompt, EqualHashIdsAreEqualTokens) {
  const TraceRecord a{.input_tokens = 1200, .hash_ids = {3, 4, 5}};
  const TraceRecord b{.input_tokens = 1500, .hash_ids = {3, 4, 6}};
  const std::vector<std::int32_t> first = ids(trace_prompt(a, 512, 0));
  const std::vector<std::int32_t> second = ids(trace_prompt(b, 512, 1));
  ASSERT_EQ(first.size(), 1200u);
  ASSERT_EQ(second.size(), 1500u);
  EXPECT_TRUE(std::equal(first.begin(), first.begin() + 1024, second.begin()));
  EXPECT_FALSE(std::equal(first.begin() + 1024, first.end(), second.begin() + 1024));
}

TEST(TracePrompt, TheLastBlockTakesWhatRoundingLeft) {
  const TraceRecord record{.input_tokens = 103, .hash_ids = {3, 4}};
  const std::vector<PromptPart> parts = trace_prompt(record, 51, 0);
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_EQ(parts[0].tokens, 51);
  EXPECT_EQ(parts[1].tokens, 52);
  EXPECT_EQ(trace_prompt({.input_tokens = 51, .hash_ids = {3, 4}}, 51, 0).size(), 1u);
  const std::vector<PromptPart> unknown = trace_prompt({.input_tokens = 9}, 512, 5);
  ASSERT_EQ(unknown.size(), 1u);
  EXPECT_EQ(unknown[0].use, Stream::request);
  EXPECT_EQ(unknown[0].number, 5u);
  EXPECT_EQ(unknown[0].tokens, 9);
}

TEST(PlainTokens, StayInsideTheVocabulary) {
  for (const std::int64_t vocab : {1, 2, 3, 4, 5, 259, 512, 4096, 31999}) {
    const TokenRange range = plain_tokens(vocab);
    EXPECT_TRUE(0 <= range.first && range.first < range.end && range.end <= vocab) << vocab;
  }
  EXPECT_EQ(plain_tokens(128256).end, 32000);
  EXPECT_EQ(plain_tokens(0).end, 32000);
}

TEST(PromptText, SharesWordsAsIdsAreShared) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += "word" + std::to_string(i) + (i % 7 == 0 ? "\n" : "  ");
  const auto words = PromptText::make(text);
  ASSERT_TRUE(words.ok());
  const PromptPart shared{Stream::shared_prefix, 0, 40};
  const std::string one = words->prompt(std::vector{shared, PromptPart{Stream::request, 1, 80}}, 1);
  const std::string two = words->prompt(std::vector{shared, PromptPart{Stream::request, 2, 80}}, 1);
  EXPECT_EQ(std::count(one.begin(), one.end(), ' '), 30 + 60 - 1);
  const auto same = std::mismatch(one.begin(), one.end(), two.begin(), two.end()).first - one.begin();
  EXPECT_EQ(std::count(one.begin(), one.begin() + same, ' '), 30);
  EXPECT_EQ(one.find('\n'), std::string::npos);
  EXPECT_FALSE(PromptText::make(" \n\t").ok());
  EXPECT_EQ(PromptText::make("one")->prompt(std::vector{PromptPart{Stream::request, 0, 4}}, 0), "one one one");
}

TEST(Lengths, ParsingAndDrawing) {
  const auto fixed = parse_lengths("512", 1);
  ASSERT_TRUE(fixed.ok());
  EXPECT_EQ(draw_length(*fixed, 1, 2, 0), 512);
  const auto range = parse_lengths("3-6", 1);
  ASSERT_TRUE(range.ok());
  std::vector<int> seen(7);
  for (std::uint64_t i = 0; i < 4000; ++i) ++seen[static_cast<std::size_t>(draw_length(*range, 1, i, 0))];
  EXPECT_EQ(std::accumulate(seen.begin(), seen.begin() + 3, 0), 0);
  for (std::size_t length = 3; length <= 6; ++length) EXPECT_NEAR(seen[length], 1000, 150);
  EXPECT_EQ(draw_length({1, 1 << 20}, 5, 9, 0), draw_length({1, 1 << 20}, 5, 9, 0));
  EXPECT_NE(draw_length({1, 1 << 20}, 5, 9, 0), draw_length({1, 1 << 20}, 5, 9, 1));
  for (const char* text :
       {"", "x", "0", "-3", "5-", "-", "6-3", "3-x", "3-4-5", "1.5", " 3", "99999999", "1-99999999999"}) {
    EXPECT_FALSE(parse_lengths(text, 1).ok()) << text;
  }
}

TEST(PoissonArrivals, GapsAreExponential) {
  constexpr double kRate = 20;
  constexpr std::int64_t kCount = 40000;
  const std::vector<double> arrivals = poisson_arrivals(kRate, kCount, 3);
  ASSERT_EQ(arrivals.size(), static_cast<std::size_t>(kCount));
  EXPECT_TRUE(std::is_sorted(arrivals.begin(), arrivals.end()));
  EXPECT_NEAR(arrivals.back(), kCount / kRate, 5 * std::sqrt(kCount) / kRate);
  // Kolmogorov-Smirnov against 1 - exp(-rate x).
  std::vector<double> gaps(arrivals.size());
  std::adjacent_difference(arrivals.begin(), arrivals.end(), gaps.begin());
  std::sort(gaps.begin(), gaps.end());
  double farthest = 0;
  for (std::size_t i = 0; i < gaps.size(); ++i) {
    const double expected = 1 - std::exp(-kRate * gaps[i]);
    farthest = std::max(farthest, std::abs(expected - (static_cast<double>(i) + 0.5) / kCount));
  }
  EXPECT_LT(farthest, 1.95 / std::sqrt(kCount));  // the 0.1 % point
  EXPECT_EQ(arrivals, poisson_arrivals(kRate, kCount, 3));
  EXPECT_NE(arrivals, poisson_arrivals(kRate, kCount, 4));
}

TEST(PoissonArrivals, AnInfiniteRateIsABurst) {
  EXPECT_EQ(poisson_arrivals(INFINITY, 3, 1), (std::vector<double>{0, 0, 0}));
  EXPECT_TRUE(poisson_arrivals(1, 0, 1).empty());
}

}  // namespace
}  // namespace millrace::bench
