#include "runtime/kv_cache.h"

#include <utility>

namespace millrace {

Result<std::unique_ptr<KvCache>> KvCache::create(const PageLayout& layout, std::int32_t pages, Backend& backend) {
  std::unique_ptr<KvCache> cache(new KvCache(backend));
  cache->layout_ = layout;
  cache->pages_ = pages;
  for (const CacheGroup& group : layout.groups) {
    MILLRACE_TRY(Buffer memory, backend.allocate(group.page_bytes * static_cast<std::size_t>(pages)));
    cache->memory_.push_back(std::move(memory));
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

void KvCache::copy(std::span<const PageCopy> copies) {
  for (const PageCopy& copy : copies) {
    const auto group = static_cast<std::size_t>(copy.group);
    const std::size_t bytes = layout_.groups[group].page_bytes;
    backend_->copy(memory_[group], static_cast<std::size_t>(copy.to) * bytes, memory_[group],
                   static_cast<std::size_t>(copy.from) * bytes, bytes);
  }
}

}  // namespace millrace
