// Which pages a row reads: ranges, budgets, and the order of what may be chosen.
#include "kv/page_choice.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>

namespace millrace {
namespace {

using Pages = std::vector<std::int32_t>;

constexpr std::int32_t kPage = 16;

PageSelection selection(PageChoice choice, std::int64_t tokens) {
  return {.choice = choice, .tokens = tokens, .sink_tokens = 16, .recent_tokens = 40};
}

Pages choose(const PageSelection& of, std::int64_t position, const std::vector<float>& scores, std::int64_t queries = 1,
             const PageLot& lot = {}) {
  PageChooser chooser;
  const PageCandidates some = page_candidates(of, position, kPage);
  return chooser.choose(of, some, position / kPage, scores.data(), queries,
                        static_cast<std::int64_t>(scores.size()) / queries, lot);
}

TEST(PageCandidates, ABudgetThatHoldsThePastLeavesNothingOut) {
  for (const PageChoice choice : {PageChoice::quest, PageChoice::recent, PageChoice::random}) {
    const PageSelection of = selection(choice, 160);
    for (std::int64_t position = 0; position < 1000; ++position) {
      EXPECT_EQ(page_candidates(of, position, kPage).all(), position < 160) << position;
    }
  }
}

TEST(PageCandidates, NoRowReadsMoreThanItsBudget) {
  for (const PageChoice choice : {PageChoice::quest, PageChoice::recent, PageChoice::random}) {
    for (const std::int64_t sinks : {0, 1, 16, 17}) {
      for (const std::int64_t recent : {1, 2, 16, 17, 40}) {
        const auto whole = [](std::int64_t tokens) { return (tokens + kPage - 1) / kPage; };
        const std::int64_t least = kPage * (whole(sinks) + 1 + whole(recent - 1) + 1);  // as recipes must have it
        for (const std::int64_t tokens : {least, least + 5, std::int64_t{512}}) {
          const PageSelection of{.choice = choice, .tokens = tokens, .sink_tokens = sinks, .recent_tokens = recent};
          for (std::int64_t position = tokens; position < tokens + 200; ++position) {
            const PageCandidates some = page_candidates(of, position, kPage);
            const std::int64_t pages = position / kPage + 1;
            EXPECT_EQ(some.first, whole(sinks));
            EXPECT_LE(some.end, (position - recent + 1) / kPage) << "the page of the earliest recent one is read";
            EXPECT_EQ(some.first + some.chosen + pages - some.end, tokens / kPage) << position;
            EXPECT_EQ(some.chosen > 0, choice != PageChoice::recent);
          }
        }
      }
    }
  }
}

TEST(PageChooser, TakesTheBestInTheirOrder) {
  const PageSelection of = selection(PageChoice::quest, 6 * kPage);
  // 12 pages: the first and the last three (40 positions, down to 149) are read anyway, two are chosen of 1 to 8.
  EXPECT_EQ(choose(of, 188, {0, 7, 1, 1, 1, 9, 1, 1}), (Pages{0, 2, 6, 9, 10, 11}));
  EXPECT_EQ(choose(of, 188, {3, 3, 3, 3, 3, 3, 3, 3}), (Pages{0, 1, 2, 9, 10, 11})) << "of equal ones the earlier";
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(choose(of, 188, {nan, -5, nan, nan, -6, nan, nan, nan}), (Pages{0, 2, 5, 9, 10, 11}));
  EXPECT_EQ(choose(of, 188, {nan, nan, nan, nan, nan, nan, nan, nan}), (Pages{0, 1, 2, 9, 10, 11}));
  EXPECT_EQ(choose(of, 188, {-infinity, 1, -infinity, 2, 0, 0, 0, 0}), (Pages{0, 2, 4, 9, 10, 11}));
}

TEST(PageChooser, EachQueryCountsByWhatItPrefers) {
  const PageSelection of = selection(PageChoice::quest, 6 * kPage);
  // The second query's scores are a hundred times as large; still both get the page that they want most.
  EXPECT_EQ(choose(of, 188, {0, 0, 1, 0, 0, 0, 0, 0, 300, 500, 300, 400, 300, 300, 300, 300}, 2),
            (Pages{0, 2, 3, 9, 10, 11}));
}

TEST(PageChooser, ByMassTakesWhatEachQueryWants) {
  PageSelection of{.mass = 0.9, .sink_tokens = 16, .recent_tokens = 40};
  // Of the first query one page has 0.99 of the mass, of the second two have the half of it each, less what is far.
  const std::vector<float> two{0, 0, 9, 0, 0, 0, 0, 0,  //
                               0, 0, 0, 0, 7, 0, 7, 0};
  EXPECT_EQ(choose(of, 188, two, 2), (Pages{0, 3, 5, 7, 9, 10, 11}));
  of.tokens = 16 * 6;  // and no more than that: the first, four of the end, one that is best
  EXPECT_EQ(choose(of, 188, two, 2).size(), 6u);
  of.tokens = std::int64_t{1} << 40;
  // All alike: all of them are in one step.
  EXPECT_EQ(choose(of, 188, std::vector<float>(8, 1.0f)).size(), 12u);
  // More of the mass never takes less.
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  std::vector<float> scores(100);
  for (float& score : scores) score = normal(random);
  scores[7] = std::numeric_limits<float>::quiet_NaN();
  std::size_t before = 0;
  for (const double mass : {0.1, 0.3, 0.5, 0.8, 0.9, 0.99, 0.999999}) {
    of.mass = mass;
    const Pages taken = choose(of, 16 + 100 * 16 + 39, scores, 1);
    EXPECT_GE(taken.size(), before);
    before = taken.size();
    double all = 0.0, read = 0.0;
    for (std::size_t p = 0; p < scores.size(); ++p) {
      if (p == 7) continue;
      all += std::exp(static_cast<double>(scores[p]));
      if (std::ranges::count(taken, static_cast<std::int32_t>(p) + 1) > 0)
        read += std::exp(static_cast<double>(scores[p]));
    }
    EXPECT_GE(read, (mass - 0.03) * all) << mass;
  }
  EXPECT_LE(before, 103u);
}

TEST(PageChooser, RecentPagesAlone) {
  EXPECT_EQ(choose(selection(PageChoice::recent, 6 * kPage), 188, {}), (Pages{0, 7, 8, 9, 10, 11}));
}

TEST(PageChooser, DrawsAllPagesAlike) {
  const PageSelection of = selection(PageChoice::random, 6 * kPage);
  std::map<std::int32_t, int> times;
  std::map<Pages, int> sets;
  constexpr int kDraws = 4000;
  for (int i = 0; i < kDraws; ++i) {
    const Pages pages =
        choose(of, 188, {}, 1,
               {188 + 16 * (i % 1000), static_cast<std::uint32_t>(i / 2000), static_cast<std::uint32_t>(i / 1000 % 2)});
    ASSERT_EQ(pages.size(), 6u);
    for (const std::int32_t page : pages) ++times[page];
    ++sets[pages];
  }
  // Two of eight each time: 1,000 of 4,000, with a deviation of 27.
  for (std::int32_t page = 1; page <= 8; ++page) EXPECT_NEAR(times[page], kDraws / 4, 140) << page;
  EXPECT_EQ(sets.size(), 28u) << "all pairs of eight";
  // Position, layer and kv head all count.
  const PageSelection many = selection(PageChoice::random, 40 * kPage);
  const Pages one = choose(many, 3000, {}, 1, {3000, 6, 7});
  EXPECT_EQ(choose(many, 3000, {}, 1, {3000, 6, 7}), one);
  for (const PageLot& other : {PageLot{3001, 6, 7}, {3000, 5, 7}, {3000, 6, 8}}) {
    EXPECT_NE(choose(many, 3000, {}, 1, other), one);
  }
}

TEST(PageChooser, AgreesWithASort) {
  std::mt19937 random(5);
  for (int trial = 0; trial < 300; ++trial) {
    const std::int64_t position = 200 + static_cast<std::int64_t>(random() % 2000),
                       tokens = 96 + static_cast<std::int64_t>(random() % 600);
    const PageSelection of = selection(PageChoice::quest, tokens);
    const PageCandidates some = page_candidates(of, position, kPage);
    if (some.all()) continue;
    std::vector<float> scores(static_cast<std::size_t>(some.end - some.first));
    for (float& score : scores) score = static_cast<float>(random() % 50);
    std::vector<std::int32_t> order(scores.size());
    for (std::size_t p = 0; p < order.size(); ++p) order[p] = static_cast<std::int32_t>(p);
    std::ranges::stable_sort(order, std::greater<>(),
                             [&](std::int32_t p) { return scores[static_cast<std::size_t>(p)]; });
    order.resize(static_cast<std::size_t>(some.chosen));
    Pages expected;
    for (std::int32_t p = 0; p <= position / kPage; ++p) {
      const bool always = p < some.first || p >= some.end;
      if (always || std::ranges::find(order, p - some.first) != order.end()) expected.push_back(p);
    }
    EXPECT_EQ(choose(of, position, scores), expected);
  }
}

}  // namespace
}  // namespace millrace
