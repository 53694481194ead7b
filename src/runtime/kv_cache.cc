#include "runtime/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "core/philox.h"

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
                              .key_scale_offset = place.key_scale_offset,
                              .value_scale_offset = place.value_scale_offset,
                              .page_tokens = layout.page_tokens,
                              .group = place.group,
                              .format = layout.format});
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

void KvCache::fill_with_noise(std::size_t group, std::int32_t page) {
  // Codes may be any; every fourth byte is then the highest of a scale as well.
  const std::size_t element = layout_.format == KvFormat::bf16 ? 2 : 4, bytes = layout_.groups[group].page_bytes;
  noise_.resize(layout_.groups.size());
  std::vector<std::byte>& noise = noise_[group];
  const std::size_t offset = static_cast<std::size_t>(page) * bytes;
  if (!noise.empty()) {
    backend_->write(memory_[group], offset, noise);
    return;
  }
  noise.resize(bytes);
  for (std::size_t at = 0; at < bytes; at += sizeof(PhiloxBlock)) {
    const PhiloxBlock block = philox4x32_10({static_cast<std::uint32_t>(at), 0, 0, 0}, {0, 0});
    std::memcpy(noise.data() + at, block.data(), std::min(sizeof block, bytes - at));
  }
  if (kv_element_bytes(layout_.format) == 1 && kv_scales(layout_.format) == 0) {
    for (std::byte& code : noise) code &= std::byte{0xbf};  // no code is an infinity or NaN, or large
    backend_->write(memory_[group], offset, noise);
    return;
  }
  // The sign stays as drawn, the exponent becomes one of ordinary numbers.
  for (std::size_t at = element - 1; at < bytes; at += element) {
    noise[at] = (noise[at] & std::byte{0x80}) | std::byte{0x3e};
  }
  backend_->write(memory_[group], offset, noise);
}

}  // namespace millrace
