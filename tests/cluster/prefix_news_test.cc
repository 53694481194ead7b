#include "cluster/prefix_news.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "cluster/router.h"
#include "kv/page_pool.h"

namespace millrace {
namespace {

std::vector<std::int32_t> tokens_from(std::int32_t first, std::size_t count) {
  std::vector<std::int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

/// A cache with one pool, in which prompts of whole rows are put and let go.
struct Cache {
  explicit Cache(std::int32_t row_tokens) : row(row_tokens) {}

  void put(std::string_view name, const std::vector<std::int32_t>& tokens) {
    std::vector<PrefixCache::Node> locked{cache.lock_root(name)};
    for (std::size_t at = 0; at + static_cast<std::size_t>(row) <= tokens.size(); at += static_cast<std::size_t>(row)) {
      const std::int32_t page = *pools[0].acquire();
      const auto part = std::span(tokens).subspan(at, static_cast<std::size_t>(row));
      locked.push_back(cache.insert(locked.back(), part, std::span(&page, 1), 1));
      pools[0].release(page);  // the tree has it
    }
    for (auto node = locked.rbegin(); node != locked.rend(); ++node) cache.unlock(*node);
  }

  std::int32_t row;
  std::vector<PagePool> pools = [] {
    std::vector<PagePool> made;
    made.emplace_back(64);
    return made;
  }();
  PrefixCache cache{pools, row, 0};
};

TEST(PrefixNewsTest, WhatIsHeldHasTheNumbersThatGatewaysLookFor) {
  for (const std::int32_t row : {8, 16, 32}) {
    Cache cache(row);
    const std::vector<std::int32_t> prompt = tokens_from(10, 96);
    cache.put("/", prompt);
    cache.put("long/somebody", tokens_from(500, 64));
    const std::vector<std::uint64_t> held = pages_held(cache.cache);
    std::vector<std::int32_t> longer = prompt;
    longer.push_back(1);
    const std::vector<std::uint64_t> looked_for = PrefixIndex::pages_of("", longer);
    EXPECT_EQ(looked_for.size(), 6u);
    for (const std::uint64_t page : looked_for) EXPECT_TRUE(std::ranges::binary_search(held, page)) << row;
    std::vector<std::int32_t> theirs = tokens_from(500, 65);
    for (const std::uint64_t page : PrefixIndex::pages_of("somebody", theirs)) {
      EXPECT_TRUE(std::ranges::binary_search(held, page));
    }
    for (const std::uint64_t page : PrefixIndex::pages_of("", theirs)) {
      EXPECT_FALSE(std::ranges::binary_search(held, page)) << "whose it is counts";
    }
    EXPECT_EQ(held.size(), 10u);
    while (cache.cache.evict()) {
    }
    EXPECT_TRUE(pages_held(cache.cache).empty());
  }
}

TEST(PrefixNewsTest, ChangesAreToldAndPutTogetherAgain) {
  PrefixTeller teller;
  std::set<std::uint64_t> heard;
  const auto hear = [&](const std::vector<PrefixNews>& messages) {
    for (const PrefixNews& news : messages) {
      const auto again = decode_prefix_news(encode(news));
      ASSERT_TRUE(again.ok()) << again.error().message;
      EXPECT_EQ(again->incarnation, 7u);
      if (again->anew) heard.clear();
      for (const std::uint64_t page : again->added) heard.insert(page);
      for (const std::uint64_t page : again->removed) heard.erase(page);
    }
  };
  std::vector<std::uint64_t> pages(40000);
  std::iota(pages.begin(), pages.end(), 1u);
  hear(teller.tell(pages, 7, true));
  EXPECT_EQ(heard.size(), pages.size());
  EXPECT_TRUE(teller.tell(pages, 7, false).empty()) << "nothing has changed";
  std::vector<std::uint64_t> later(pages.begin() + 39990, pages.end());
  later.push_back(99999);
  hear(teller.tell(later, 7, false));
  EXPECT_EQ(std::vector<std::uint64_t>(heard.begin(), heard.end()), later);
  heard = {5};
  hear(teller.tell(later, 7, true));
  EXPECT_EQ(std::vector<std::uint64_t>(heard.begin(), heard.end()), later) << "also for those who heard nothing before";
}

TEST(PrefixNewsTest, MalformedNewsAreRefused) {
  const Bytes whole = encode(PrefixNews{.incarnation = 1, .anew = true, .added = {1, 2, 3}, .removed = {4}});
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_FALSE(decode_prefix_news(std::span(whole).first(size)).ok()) << size;
  }
  Bytes longer = whole;
  longer.push_back(std::byte{0});
  EXPECT_FALSE(decode_prefix_news(longer).ok());
  Bytes other = whole;
  other[1] = std::byte{32};
  EXPECT_FALSE(decode_prefix_news(other).ok());
}

}  // namespace
}  // namespace millrace
