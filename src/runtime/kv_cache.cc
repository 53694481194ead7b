#include "runtime/kv_cache.h"

#include <utility>

namespace millrace {

Result<std::unique_ptr<KvCache>> KvCache::create(const PageLayout& layout, std::int32_t pages, Backend& backend) {
  std::unique_ptr<KvCache> cache(new KvCache());
  cache->layout_ = layout;
  cache->pages_ = pages;
  for (const CacheGroup& group : layout.groups) {
    MILLRACE_TRY(Buffer memory, backend.allocate(group.page_bytes * static_cast<std::size_t>(pages)));
    cache->memory_.push_back(std::move(memory));
    cache->pools_.push_back(std::make_unique<PagePool>(pages));
  }
  for (const KvPlace& place : layout.layers) {
    const auto group = static_cast<std::size_t>(place.group);
    cache->layers_.push_back({.pages = cache->memory_[group].data(),
                              .page_bytes = layout.groups[group].page_bytes,
                              .key_offset = place.key_offset,
                              .value_offset = place.value_offset,
                              .page_tokens = layout.page_tokens,
                              .group = place.group,
                              .dtype = layout.dtype});
  }
  return cache;
}

std::vector<std::int64_t> KvCache::windows() const {
  std::vector<std::int64_t> windows;
  for (const CacheGroup& group : layout_.groups) windows.push_back(group.window);
  return windows;
}

std::vector<PageTable> KvCache::make_tables() {
  std::vector<PageTable> tables;
  tables.reserve(pools_.size());
  for (const auto& pool : pools_) tables.emplace_back(*pool, layout_.page_tokens);
  return tables;
}

}  // namespace millrace
