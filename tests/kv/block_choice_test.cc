// Which blocks of the past a block of a prompt's rows reads: ranges, budgets, and what heads ask for.
#include "kv/block_choice.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <random>

namespace millrace {
namespace {

using Blocks = std::vector<std::int32_t>;

BlockSelection selection(BlockChoice choice, std::int64_t tokens, double mass = 1.0) {
  return {.choice = choice, .mass = mass, .tokens = tokens, .sink_tokens = 64, .recent_tokens = 128};
}

BlockSelection by_mass(double mass) {
  return selection(BlockChoice::xattention, std::numeric_limits<std::int64_t>::max(), mass);
}

/// For rows behind `shares.size() / heads` blocks.
Blocks choose(const BlockSelection& of, const std::vector<float>& shares, std::int64_t heads = 1) {
  BlockChooser chooser;
  const auto blocks = static_cast<std::int64_t>(shares.size()) / heads;
  return chooser.choose(of, block_candidates(of, blocks * kKeyBlock), blocks, shares.data(), heads, blocks, {});
}

TEST(BlockCandidates, ABudgetThatHoldsThePastLeavesNothingOut) {
  for (const BlockChoice choice : {BlockChoice::xattention, BlockChoice::recent, BlockChoice::random}) {
    for (std::int64_t position = 0; position < 20 * kQueryBlock; position += kQueryBlock) {
      EXPECT_EQ(block_candidates(selection(choice, 1024), position).all(), position <= 1024) << position;
      EXPECT_TRUE(block_candidates(selection(choice, 20 * kQueryBlock), position).all()) << position;
    }
  }
}

TEST(BlockCandidates, AllOfTheMassIsEverything) {
  for (std::int64_t position = 0; position < 20 * kQueryBlock; position += kQueryBlock) {
    EXPECT_TRUE(block_candidates(by_mass(1.0), position).all());
    // The first 64 and the last 128 are read anyway.
    EXPECT_EQ(block_candidates(by_mass(0.999), position).all(), position <= 128) << position;
  }
}

TEST(BlockCandidates, NoRowsReadMoreThanTheirBudget) {
  for (const BlockChoice choice : {BlockChoice::xattention, BlockChoice::recent, BlockChoice::random}) {
    for (const std::int64_t sinks : {0, 1, 64, 65}) {
      for (const std::int64_t recent : {1, 64, 65, 200}) {
        const auto whole = [](std::int64_t tokens) { return (tokens + kKeyBlock - 1) / kKeyBlock; };
        const std::int64_t least = kKeyBlock * (whole(sinks) + 1 + whole(recent));  // as recipes must have it
        for (const std::int64_t tokens : {least, least + 5, std::int64_t{1024}}) {
          BlockSelection of = selection(choice, tokens);
          of.sink_tokens = sinks;
          of.recent_tokens = recent;
          const std::int64_t position = 16 * kQueryBlock, blocks = position / kKeyBlock;
          const BlockCandidates some = block_candidates(of, position);
          EXPECT_EQ(some.first, whole(sinks));
          EXPECT_LE(some.end, blocks - whole(recent));
          EXPECT_EQ(some.first + some.most + blocks - some.end, tokens / kKeyBlock);
          EXPECT_EQ(some.most > 0, choice != BlockChoice::recent);
        }
      }
    }
  }
}

TEST(BlockChooser, TakesTheLargestSharesUntilTheMassIsRead) {
  // The rows themselves have 0.2, what is read anyway 0.1 + 0.05 + 0.05.
  const std::vector<float> shares{0.1f, 0.02f, 0.25f, 0.03f, 0.2f, 0.1f, 0.05f, 0.05f};
  EXPECT_EQ(choose(by_mass(0.3), shares), (Blocks{0, 6, 7}));
  EXPECT_EQ(choose(by_mass(0.6), shares), (Blocks{0, 2, 6, 7}));
  EXPECT_EQ(choose(by_mass(0.7), shares), (Blocks{0, 2, 4, 6, 7}));
  EXPECT_EQ(choose(by_mass(0.93), shares), (Blocks{0, 2, 4, 5, 6, 7}));
  EXPECT_EQ(choose(by_mass(0.96), shares), (Blocks{0, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(choose(by_mass(0.999), shares), (Blocks{0, 1, 2, 3, 4, 5, 6, 7}));
}

TEST(BlockChooser, MoreMassReadsAllThatLessMassReads) {
  std::mt19937 random(5);
  for (int round = 0; round < 200; ++round) {
    std::vector<float> shares(40);
    float sum = 0.0f;
    for (float& share : shares) sum += share = static_cast<float>(random() % 1000 * (random() % 1000));
    for (float& share : shares) share *= 0.9f / sum;
    Blocks before;
    for (const double mass : {0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99}) {
      const Blocks now = choose(by_mass(mass), shares);
      EXPECT_TRUE(std::ranges::includes(now, before)) << mass;
      EXPECT_TRUE(std::ranges::is_sorted(now));
      // It is enough, and without the least of what was chosen it would not be.
      double read = 0.1, least = 1.0;
      for (const std::int32_t block : now) {
        read += shares[static_cast<std::size_t>(block)];
        if (block >= 1 && block < 38) least = std::min<double>(least, shares[static_cast<std::size_t>(block)]);
      }
      EXPECT_GE(read, mass - 1e-6);
      if (now.size() > 3) {
        EXPECT_LT(read - least, mass + 1e-6);
      }
      before = now;
    }
  }
}

TEST(BlockChooser, WhatAnyHeadAsksForIsRead) {
  const std::vector<float> shares{0.0f, 0.9f, 0.0f, 0.0f, 0.0f, 0.0f,   //
                                  0.0f, 0.0f, 0.0f, 0.6f, 0.0f, 0.0f};  // its own rows have 0.4
  EXPECT_EQ(choose(by_mass(0.9), shares, 2), (Blocks{0, 1, 3, 4, 5}));
  EXPECT_EQ(choose(by_mass(0.39), shares, 2), (Blocks{0, 1, 4, 5}));
  // Together with a budget: that of which some head has most.
  BlockSelection both = selection(BlockChoice::xattention, 4 * kKeyBlock, 0.9);
  EXPECT_EQ(choose(both, shares, 2), (Blocks{0, 1, 4, 5}));
  both.tokens = 5 * kKeyBlock;
  EXPECT_EQ(choose(both, shares, 2), (Blocks{0, 1, 3, 4, 5}));
}

TEST(BlockChooser, OfEqualSharesTheEarlierIsRead) {
  const std::vector<float> shares(10, 0.05f);
  EXPECT_EQ(choose(selection(BlockChoice::xattention, 5 * kKeyBlock), shares), (Blocks{0, 1, 2, 8, 9}));
  EXPECT_EQ(choose(by_mass(0.74), shares), (Blocks{0, 1, 2, 8, 9}));
}

TEST(BlockChooser, WhatIsNoNumberIsNoShare) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(
      choose(selection(BlockChoice::xattention, 5 * kKeyBlock), {kNan, kNan, 0.1f, kNan, 0.2f, -1.0f, 0.0f, 0.0f}),
      (Blocks{0, 2, 4, 6, 7}));
  EXPECT_EQ(choose(by_mass(0.9), std::vector<float>(9, kNan)).size(), 3u) << "all else is the rows' own";
}

TEST(BlockChooser, RecentReadsTheLast) {
  EXPECT_EQ(choose(selection(BlockChoice::recent, 5 * kKeyBlock), std::vector<float>(12)), (Blocks{0, 8, 9, 10, 11}));
}

TEST(BlockChooser, DrawsEveryBlockAsOftenAndByItsLot) {
  const BlockSelection of = selection(BlockChoice::random, 7 * kKeyBlock);
  std::map<std::int32_t, int> counts;
  BlockChooser chooser;
  const std::int64_t blocks = 35;  // of which 4 of 32 are drawn
  for (std::uint32_t layer = 0; layer < 20; ++layer) {
    for (std::uint32_t head = 0; head < 100; ++head) {
      for (const std::int32_t block : chooser.choose(of, block_candidates(of, blocks * kKeyBlock), blocks, nullptr, 1,
                                                     0, {blocks * kKeyBlock, layer, head})) {
        ++counts[block];
      }
    }
  }
  for (std::int32_t block = 1; block < 33; ++block) EXPECT_NEAR(counts[block], 250, 75) << block;  // 5 sigma
  for (const std::int32_t block : {0, 33, 34}) EXPECT_EQ(counts[block], 2000);
}

}  // namespace
}  // namespace millrace
