// Pages in the prefix cache that sequences hold without a lock on their rows.

#include <gtest/gtest.h>

#include <algorithm>

#include "kv/prefix_world.h"

namespace millrace {
namespace {

using prefix_world::Tokens;
using prefix_world::World;

TEST(HeldPages, GiveNoMemoryBack) {
  World w(4, 2);
  const PrefixCache::Node root = w.cache.lock_root("");
  const Tokens pages = w.new_pages();
  const PrefixCache::Node row = w.cache.insert(root, Tokens{1, 2, 3, 4}, pages, 1);
  w.cache.hold_page(row, 1);  // of the second group only
  w.pools[0].release(pages[0]);
  w.cache.unlock(row);
  EXPECT_EQ(w.cache.evictable(), 1);
  EXPECT_EQ(w.cache.evictable(0), 1);
  EXPECT_EQ(w.cache.evictable(1), 0);
  w.cache.check();
  // Others may take the row meanwhile.
  EXPECT_EQ(w.cache.match(root, Tokens{1, 2, 3, 4}, 2).rows, (std::vector<PrefixCache::Node>{row}));
  w.cache.lock(row);
  w.cache.unlock(row);
  EXPECT_EQ(w.cache.evictable(1), 0);
  ASSERT_TRUE(w.cache.evict());
  EXPECT_EQ(w.pools[0].free_count(), 4);
  EXPECT_EQ(w.pools[1].free_count(), 3) << "who holds the page has it for itself now";
  w.cache.let_page_go(1, pages[1]);  // nothing that the cache knows of
  w.pools[1].release(pages[1]);
  w.cache.check();
  w.cache.unlock(root);
}

TEST(HeldPages, AreCountedInThePoolOfTheirGroup) {
  std::vector<PagePool> pools{PagePool(4), PagePool(2)};
  const Tokens pool_of{0, 1, 0};
  PrefixCache cache(pools, 4, 0, 1, pool_of);
  const PrefixCache::Node root = cache.lock_root("");
  const Tokens pages{*pools[0].acquire(), *pools[1].acquire(), *pools[0].acquire()};
  const PrefixCache::Node row = cache.insert(root, Tokens{1, 2, 3, 4}, pages, 1);
  cache.hold_page(row, 2);
  pools[0].release(pages[0]);
  pools[1].release(pages[1]);
  cache.unlock(row);
  EXPECT_EQ(cache.evictable(0), 1) << "one of two";
  EXPECT_EQ(cache.evictable(1), 1);
  cache.let_page_go(2, pages[2]);
  pools[0].release(pages[2]);
  EXPECT_EQ(cache.evictable(0), 2);
  cache.check();
  std::vector<std::int32_t> references(4, 0);
  cache.count_references(0, references);
  cache.count_references(2, references);
  EXPECT_EQ(std::ranges::count(references, 1), 2);
  ASSERT_TRUE(cache.evict());
  EXPECT_EQ(pools[0].free_count(), 4);
  EXPECT_EQ(pools[1].free_count(), 2);
  cache.check();
  cache.unlock(root);
}

TEST(HeldPages, CanBeHadAgainWhenTheyAreLetGo) {
  World w(4);
  const PrefixCache::Node root = w.cache.lock_root("");
  const Tokens pages = w.new_pages();
  const PrefixCache::Node row = w.cache.insert(root, Tokens{1, 2, 3, 4}, pages, 1);
  w.cache.hold_page(row, 0);
  w.cache.hold_page(row, 0);  // two sequences
  w.pools[0].retain(pages[0]);
  w.cache.unlock(row);
  for (int n = 0; n < 2; ++n) {
    EXPECT_EQ(w.cache.evictable(0), 0);
    w.cache.let_page_go(0, pages[0]);
    w.pools[0].release(pages[0]);
  }
  EXPECT_EQ(w.cache.evictable(0), 1);
  w.cache.check();
  w.cache.unlock(root);
}

TEST(HeldPages, GoLastWhenMemoryIsWanted) {
  World w(3);
  const PrefixCache::Node root = w.cache.lock_root("");
  const Tokens held = w.new_pages();
  const PrefixCache::Node oldest = w.cache.insert(root, Tokens{1, 2, 3, 4}, held, 1);
  w.cache.hold_page(oldest, 0);
  w.cache.unlock(oldest);
  w.cache.unlock(w.insert(root, {5, 6, 7, 8}));
  ASSERT_TRUE(w.cache.evict());
  EXPECT_EQ(w.free_pages(), 2) << "the other one";
  EXPECT_EQ(w.cache.find(root, Tokens{1, 2, 3, 4}), oldest) << "still to be found";
  w.cache.check();
  ASSERT_TRUE(w.cache.evict());
  EXPECT_FALSE(w.cache.evict());
  w.cache.let_page_go(0, held[0]);
  w.release(held);
  w.cache.unlock(root);
}

}  // namespace
}  // namespace millrace
