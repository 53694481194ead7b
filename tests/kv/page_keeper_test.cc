#include "kv/page_keeper.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

using Entries = std::vector<std::int32_t>;

KvRetention retention(KeepChoice choice) {
  return {.choice = choice, .tokens = 96, .sink_tokens = 16, .recent_tokens = 32};
}

TEST(PageKeeper, DropsNothingUpToItsBudget) {
  for (const KeepChoice choice :
       {KeepChoice::heavy_hitters, KeepChoice::relevance, KeepChoice::recent, KeepChoice::random}) {
    PageKeeper keeper(retention(choice), 16, 0, 0);
    EXPECT_EQ(keeper.most(), 6);
    for (std::int64_t end = 16; end <= 96; end += 16) EXPECT_EQ(keeper.drop(end), Entries{}) << end;
    EXPECT_EQ(keeper.drop(112).size(), 1u);
  }
}

TEST(PageKeeper, KeepsWhatHasMostOfAttention) {
  PageKeeper keeper(retention(KeepChoice::heavy_hitters), 16, 0, 0);
  //                                       first                     8  recent
  const std::vector<std::uint64_t> masses{0, 5, 9, 1, 9, 2, 7, 3, 0, 0, 0};
  keeper.add(masses, 150, 170);  // the last page is not full
  // Room for six: the first, those from position 138 on, and of the others the two largest.
  EXPECT_EQ(keeper.drop(170), (Entries{1, 3, 5, 6, 7}));
}

TEST(PageKeeper, OfEqualOnesTheEarlierStay) {
  PageKeeper keeper(retention(KeepChoice::heavy_hitters), 16, 0, 0);
  keeper.add(std::vector<std::uint64_t>(8, 4), 112, 128);
  EXPECT_EQ(keeper.drop(128), (Entries{4, 5}));
}

TEST(PageKeeper, MassesCountByTheRowsThatHaveSeenAPage) {
  PageKeeper keeper({.choice = KeepChoice::heavy_hitters, .tokens = 80, .sink_tokens = 0, .recent_tokens = 16}, 16, 0,
                    0);
  keeper.add(std::vector<std::uint64_t>{160, 10, 10}, 0, 48);           // 160 of 48 rows, 10 of 32, 10 of 16
  keeper.add(std::vector<std::uint64_t>{0, 0, 0, 90, 90, 90}, 48, 96);  // 90 of 48, 32, 16
  // Means: 160/96, 10/80, 10/64, 90/48, 90/32, 90/16. A sum would have put page 0 before 3.
  EXPECT_EQ(keeper.drop(96), (Entries{1}));
  keeper.add(std::vector<std::uint64_t>{0, 0, 0, 0, 0, 0}, 96, 112);
  EXPECT_EQ(keeper.drop(112), (Entries{1}));  // page 2, an entry earlier now
}

TEST(PageKeeper, RelevanceForgetsWhatEarlierRowsGave) {
  for (const auto& [choice, dropped] : {std::pair{KeepChoice::heavy_hitters, 2}, {KeepChoice::relevance, 1}}) {
    PageKeeper keeper({.choice = choice, .tokens = 64, .sink_tokens = 16, .recent_tokens = 16}, 16, 0, 0);
    keeper.add(std::vector<std::uint64_t>{0, 100000, 5, 0}, 32, 64);
    EXPECT_EQ(keeper.drop(64), Entries{});
    keeper.add(std::vector<std::uint64_t>{0, 1, 50, 60, 0}, 64, 80);
    EXPECT_EQ(keeper.drop(80), Entries{dropped});
  }
}

TEST(PageKeeper, PinnedPagesStayBesideTheOthers) {
  PageKeeper keeper(retention(KeepChoice::recent), 16, 40, 0);
  EXPECT_EQ(keeper.most(), 8);  // two more than the first page
  EXPECT_EQ(keeper.drop(160), (Entries{3, 4}));
  EXPECT_EQ(keeper.drop(176), (Entries{3}));
}

TEST(PageKeeper, TheMostRecentStay) {
  PageKeeper keeper(retention(KeepChoice::recent), 16, 0, 0);
  EXPECT_EQ(keeper.drop(160), (Entries{1, 2, 3, 4}));
}

TEST(PageKeeper, WhatIsTooFarAwayStandsAtTheFarEnd) {
  PageKeeper keeper(retention(KeepChoice::recent), 16, 0, 0);  // six pages
  keeper.drop(160);
  EXPECT_TRUE(keeper.moved(160, 176).empty());  // page 10 of a context of eleven
  keeper.drop(320);                             // pages 0, 15, 16, 17, 18, 19
  // Of a context of ten pages page 11 is the farthest that rows of page 20 know: the first stands there, the others
  // where they are.
  EXPECT_EQ(keeper.moved(320, 160), (std::vector<MovedPages>{{0, 176}, {1, 0}}));
  EXPECT_EQ(keeper.moved(335, 160), keeper.moved(320, 160));
  // Of one of seven all do.
  EXPECT_EQ(keeper.moved(320, 112), (std::vector<MovedPages>{{0, 224}, {1, 0}}));
}

TEST(PageKeeper, MovedPagesStayInOrderWithinTheContext) {
  constexpr std::int64_t kContext = 160;
  PageKeeper keeper({.choice = KeepChoice::heavy_hitters, .tokens = 128, .sink_tokens = 16, .recent_tokens = 16}, 16, 0,
                    0);
  std::vector<std::int64_t> numbers;  // of the pages that are kept
  std::uint64_t random = 1;
  bool moved_some = false, moved_apart = false;
  for (std::int64_t page = 0; page < 200; ++page) {
    numbers.push_back(page);
    std::vector<std::uint64_t> masses(numbers.size());
    for (std::uint64_t& mass : masses) mass = (random = random * 6364136223846793005u + 1442695040888963407u) >> 40;
    keeper.add(masses, page * 16, (page + 1) * 16);
    const Entries dropped = keeper.drop((page + 1) * 16);
    for (auto it = dropped.rbegin(); it != dropped.rend(); ++it) numbers.erase(numbers.begin() + *it);
    const std::int64_t own = page + 1;
    const std::vector<MovedPages> moved = keeper.moved(own * 16, kContext);
    if (!moved.empty()) {
      EXPECT_EQ(moved.front().first, 0);
      EXPECT_EQ(moved.back().by, 0);
    }
    moved_some |= !moved.empty();
    moved_apart |= moved.size() > 2;
    std::int64_t before = own - kContext / 16;
    std::size_t m = 0;
    for (std::size_t entry = 0; entry < numbers.size(); ++entry) {
      while (m + 1 < moved.size() && moved[m + 1].first <= static_cast<std::int64_t>(entry)) ++m;
      const std::int64_t by = moved.empty() ? 0 : moved[m].by;
      EXPECT_EQ(by % 16, 0);
      const std::int64_t stands = numbers[entry] + by / 16;
      EXPECT_GT(stands, before);  // behind the one before it, none before the context
      EXPECT_LT(stands, own);
      if (own - numbers[entry] < kContext / 16 && stands != numbers[entry]) {
        EXPECT_EQ(stands, before + 1);  // only where another one needs its place
      }
      before = stands;
    }
  }
  EXPECT_TRUE(moved_some && moved_apart);
}

TEST(PageKeeper, LotsDifferByGroupAndAreTheSameAgain) {
  std::vector<Entries> drawn;
  for (const std::uint32_t lot : {0u, 1u, 0u}) {
    PageKeeper keeper(retention(KeepChoice::random), 16, 0, lot);
    drawn.push_back(keeper.drop(1600));
  }
  EXPECT_EQ(drawn[0].size(), 94u);
  EXPECT_EQ(drawn[0], drawn[2]);
  EXPECT_NE(drawn[0], drawn[1]);
}

}  // namespace
}  // namespace millrace
