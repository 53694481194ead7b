#include "kv/page_pool.h"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <utility>
#include <vector>

namespace millrace {
namespace {

TEST(PagePool, HandsOutEveryPageOnce) {
  PagePool pool(5);
  std::set<std::int32_t> pages;
  for (int i = 0; i < 5; ++i) pages.insert(pool.acquire().value());
  EXPECT_EQ(pages, (std::set<std::int32_t>{0, 1, 2, 3, 4}));
  EXPECT_FALSE(pool.acquire().has_value());
}

TEST(PagePool, APageIsFreeWhenItsLastReferenceGoes) {
  PagePool pool(1);
  const std::int32_t page = pool.acquire().value();
  pool.retain(page);
  pool.release(page);
  EXPECT_EQ(pool.free_count(), 0);
  pool.release(page);
  EXPECT_EQ(pool.free_count(), 1);
}

TEST(PagePoolDeathTest, ReleasingAFreePageIsABug) {
  PagePool pool(2);
  EXPECT_DEATH(pool.release(1), "free already");
}

TEST(PageTable, GrowsByWholePagesOrNotAtAll) {
  PagePool pool(3);
  PageTable table(pool, 16);
  EXPECT_TRUE(table.grow(17));
  EXPECT_EQ(table.entries().size(), 2u);
  EXPECT_TRUE(table.grow(32));
  EXPECT_EQ(table.entries().size(), 2u);
  EXPECT_FALSE(table.grow(65));  // five pages, three there are
  EXPECT_EQ(table.entries().size(), 2u);
  EXPECT_EQ(pool.free_count(), 1);
}

TEST(PageTable, TrimGivesBackOnlyPagesWhollyBelow) {
  PagePool pool(4);
  PageTable table(pool, 16);
  ASSERT_TRUE(table.grow(64));
  table.trim_below(31);
  EXPECT_EQ(pool.free_count(), 1);
  table.trim_below(32);
  EXPECT_EQ(pool.free_count(), 2);
  EXPECT_EQ(table.entries()[0], -1);
  EXPECT_EQ(table.entries()[1], -1);
  EXPECT_GE(table.entries()[2], 0);
  table.trim_below(10000);
  EXPECT_EQ(pool.free_count(), 4);
}

TEST(PageTable, WhatIsDroppedClosesUp) {
  PagePool pool(6);
  PageTable table(pool, 16);
  ASSERT_TRUE(table.grow(80));
  const std::vector<std::int32_t> before(table.entries().begin(), table.entries().end());
  table.drop(std::vector<std::int32_t>{1, 3});
  EXPECT_EQ(std::vector<std::int32_t>(table.entries().begin(), table.entries().end()),
            (std::vector<std::int32_t>{before[0], before[2], before[4]}));
  EXPECT_EQ(table.dropped(), 2);
  EXPECT_EQ(pool.free_count(), 3);
  EXPECT_TRUE(table.grow(80)) << "positions that were dropped need no pages";
  EXPECT_EQ(table.entries().size(), 3u);
  EXPECT_TRUE(table.grow(81));
  EXPECT_EQ(table.entries().size(), 4u);
  PageTable moved = std::move(table);
  EXPECT_EQ(moved.dropped(), 2);
  moved.clear_entries();
  EXPECT_EQ(moved.dropped(), 2) << "what is swapped out has still dropped them";
  EXPECT_EQ(pool.free_count(), 6);
  moved.clear();
  EXPECT_EQ(moved.dropped(), 0);
}

TEST(PageTableDeathTest, EntriesThatAreNotThereCannotBeDropped) {
  PagePool pool(2);
  PageTable table(pool, 16);
  ASSERT_TRUE(table.grow(32));
  EXPECT_DEATH(table.drop(std::vector<std::int32_t>{2}), "entries are dropped");
}

TEST(PageTable, MovingATableMovesItsPages) {
  PagePool pool(4);
  PageTable a(pool, 16);
  ASSERT_TRUE(a.grow(40));
  PageTable b(std::move(a));
  EXPECT_EQ(pool.free_count(), 1);
  PageTable c(pool, 16);
  ASSERT_TRUE(c.grow(1));
  c = std::move(b);
  EXPECT_EQ(pool.free_count(), 1);
}

// Pages are conserved whatever sequences do.
TEST(PageTable, RandomLifeNeverLosesAPage) {
  std::mt19937 random(1);
  PagePool pool(64);
  {
    std::vector<PageTable> tables;
    std::vector<std::int64_t> lengths;
    for (int step = 0; step < 20000; ++step) {
      const auto action = random() % 4;
      if (tables.empty() || action == 0) {
        tables.emplace_back(pool, 16);
        lengths.push_back(0);
      }
      const std::size_t i = random() % tables.size();
      if (action == 1) {
        const std::int64_t wanted = lengths[i] + static_cast<std::int64_t>(random() % 50);
        if (tables[i].grow(wanted)) lengths[i] = wanted;
      } else if (action == 2) {
        tables[i].trim_below(static_cast<std::int64_t>(random() % 200));
      } else if (action == 3) {
        std::swap(tables[i], tables.back());
        std::swap(lengths[i], lengths.back());
        tables.pop_back();
        lengths.pop_back();
      }
      std::set<std::int32_t> held;
      std::size_t count = 0;
      for (const PageTable& table : tables) {
        for (const std::int32_t page : table.entries()) {
          if (page < 0) continue;
          held.insert(page);
          ++count;
        }
      }
      ASSERT_EQ(held.size(), count) << "a page in two tables";
      ASSERT_EQ(static_cast<std::int32_t>(count) + pool.free_count(), pool.count());
    }
  }
  EXPECT_EQ(pool.free_count(), pool.count());
}

}  // namespace
}  // namespace millrace
