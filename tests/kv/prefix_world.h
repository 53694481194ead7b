// A prefix cache over pools of its own, for tests.
#pragma once

#include <cstdint>
#include <vector>

#include "kv/prefix_cache.h"

namespace millrace::prefix_world {

using Tokens = std::vector<std::int32_t>;
inline constexpr std::int32_t kPage = 4;

/// A cache over pools of its own, and the calls in short.
struct World {
  std::vector<PagePool> pools;
  PrefixCache cache;

  explicit World(std::int32_t pages, std::size_t groups = 1, std::int64_t window = 0, std::int32_t together = 1)
      : pools(groups, PagePool(pages)), cache(pools, kPage, window, together) {}

  Tokens new_pages() {
    Tokens pages;
    for (PagePool& pool : pools) pages.push_back(pool.acquire().value());
    return pages;
  }
  void release(const Tokens& pages) {
    for (std::size_t g = 0; g < pools.size(); ++g) pools[g].release(pages[g]);
  }
  /// A row whose pages only the cache holds, still locked.
  PrefixCache::Node insert(PrefixCache::Node parent, const Tokens& tokens, std::int64_t step = 1) {
    const Tokens pages = new_pages();
    const PrefixCache::Node node = tokens.size() % kPage == 0 ? cache.insert(parent, tokens, pages, step)
                                                              : cache.insert_partial(parent, tokens, pages, step);
    release(pages);
    return node;
  }
  [[nodiscard]] std::int32_t free_pages() const { return pools[0].free_count(); }
};

}  // namespace millrace::prefix_world
