#include "runtime/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "core/philox.h"

namespace millrace {

namespace {

/// What a page of the group could hold, of numbers of ordinary size.
std::vector<std::byte> ordinary_noise(const PageLayout& layout, std::size_t group) {
  // Codes may be any; every fourth byte is then the highest of a scale as well.
  const std::size_t element = layout.format == KvFormat::bf16 ? 2 : 4, bytes = layout.groups[group].page_bytes;
  std::vector<std::byte> noise(bytes);
  for (std::size_t at = 0; at < bytes; at += sizeof(PhiloxBlock)) {
    const PhiloxBlock block = philox4x32_10({static_cast<std::uint32_t>(at), 0, 0, 0}, {0, 0});
    std::memcpy(noise.data() + at, block.data(), std::min(sizeof block, bytes - at));
  }
  if (kv_element_bytes(layout.format) == 1 && kv_scales(layout.format) == 0) {
    for (std::byte& code : noise) code &= std::byte{0xbf};  // no code is an infinity or NaN, or large
    return noise;
  }
  // The sign stays as drawn, the exponent becomes one of ordinary numbers.
  for (std::size_t at = element - 1; at < bytes; at += element) {
    noise[at] = (noise[at] & std::byte{0x80}) | std::byte{0x3e};
  }
  return noise;
}

}  // namespace

Result<std::unique_ptr<KvCache>> KvCache::create(const PageLayout& layout, std::int32_t pages, std::int32_t swap_pages,
                                                 Backend& backend) {
  std::unique_ptr<KvCache> cache(new KvCache(backend));
  cache->layout_ = layout;
  cache->pages_ = pages;
  cache->swap_pages_ = swap_pages;
  const std::size_t rows = static_cast<std::size_t>(pages) + static_cast<std::size_t>(swap_pages);
  const auto pages_of = [&](std::int32_t pool) {
    return rows * static_cast<std::size_t>(layout.pools[static_cast<std::size_t>(pool)].groups);
  };
  for (std::size_t p = 0; p < layout.pools.size(); ++p) {
    const std::size_t all_pages = pages_of(static_cast<std::int32_t>(p));
    MILLRACE_TRY(Buffer memory, backend.allocate(layout.pools[p].page_bytes * all_pages));
    cache->memory_.push_back(std::move(memory));
  }
  for (const KeyNotes& bounds : layout.key_bounds) {
    MILLRACE_TRY(Buffer memory, backend.allocate(bounds.page_bytes * pages_of(bounds.pool)));
    cache->key_bounds_.push_back(std::move(memory));
  }
  for (const KeyNotes& buckets : layout.key_buckets) {
    MILLRACE_TRY(Buffer memory, backend.allocate(buckets.page_bytes * pages_of(buckets.pool)));
    cache->key_buckets_.push_back(std::move(memory));
  }
  for (const KvPlace& place : layout.layers) {
    const auto pool = static_cast<std::size_t>(layout.groups[static_cast<std::size_t>(place.group)].pool);
    cache->layers_.push_back({.pages = cache->memory_[pool].data(),
                              .page_bytes = layout.pools[pool].page_bytes,
                              .key_offset = place.key_offset,
                              .value_offset = place.value_offset,
                              .key_scale_offset = place.key_scale_offset,
                              .value_scale_offset = place.value_scale_offset,
                              .page_tokens = layout.page_tokens,
                              .group = place.group,
                              .format = layout.format});
    KvLayer& layer = cache->layers_.back();
    if (place.key_bounds >= 0) {
      const auto bounds = static_cast<std::size_t>(place.key_bounds);
      layer.key_bounds = static_cast<std::uint16_t*>(cache->key_bounds_[bounds].memory.get());
      layer.key_bound_numbers = layout.key_bounds[bounds].page_bytes / sizeof(std::uint16_t);
    }
    if (place.key_buckets >= 0) {
      const auto buckets = static_cast<std::size_t>(place.key_buckets);
      layer.key_buckets = static_cast<std::uint8_t*>(cache->key_buckets_[buckets].memory.get());
      layer.key_bucket_bytes = layout.key_buckets[buckets].page_bytes;
      layer.hash = place.hash;
    }
  }
  return cache;
}

std::vector<std::int64_t> KvCache::windows() const {
  std::vector<std::int64_t> windows;
  for (const CacheGroup& group : layout_.groups) windows.push_back(group.window);
  return windows;
}

std::vector<std::int32_t> KvCache::pools() const {
  std::vector<std::int32_t> pools;
  for (const CacheGroup& group : layout_.groups) pools.push_back(group.pool);
  return pools;
}

void KvCache::copy(std::span<const PageCopy> copies) {
  const auto copy_page = [this](Buffer& memory, const PageCopy& copy, std::size_t bytes) {
    backend_->copy(memory, static_cast<std::size_t>(copy.to) * bytes, memory,
                   static_cast<std::size_t>(copy.from) * bytes, bytes);
  };
  for (const PageCopy& copy : copies) {
    const std::int32_t pool = layout_.groups[static_cast<std::size_t>(copy.group)].pool;
    copy_page(memory_[static_cast<std::size_t>(pool)], copy, layout_.pools[static_cast<std::size_t>(pool)].page_bytes);
    for (std::size_t b = 0; b < key_bounds_.size(); ++b) {
      if (layout_.key_bounds[b].pool == pool) copy_page(key_bounds_[b], copy, layout_.key_bounds[b].page_bytes);
    }
    for (std::size_t b = 0; b < key_buckets_.size(); ++b) {
      if (layout_.key_buckets[b].pool == pool) copy_page(key_buckets_[b], copy, layout_.key_buckets[b].page_bytes);
    }
  }
}

KvLimits kv_limits(const KvCache& cache) {
  return {.pages = cache.pages(),
          .page_tokens = cache.layout().page_tokens,
          .windows = cache.windows(),
          .pools = cache.pools(),
          .swap_pages = cache.swap_pages()};
}

void KvCache::fill_with_noise(std::size_t group, std::int32_t page) {
  noise_.resize(layout_.groups.size());
  if (noise_[group].empty()) noise_[group] = ordinary_noise(layout_, group);
  const std::int32_t pool = layout_.groups[group].pool;
  backend_->write(memory_[static_cast<std::size_t>(pool)],
                  static_cast<std::size_t>(page) * layout_.groups[group].page_bytes, noise_[group]);
  // Bounds and buckets are each page's own: rows choose by them, and should not all choose the same.
  for (std::size_t b = 0; b < key_bounds_.size(); ++b) {
    if (layout_.key_bounds[b].pool != pool) continue;
    const std::size_t bytes = layout_.key_bounds[b].page_bytes;
    std::vector<std::uint16_t> bounds(bytes / sizeof(std::uint16_t));
    for (std::size_t i = 0; i < bounds.size(); i += 8) {
      const PhiloxBlock block = philox4x32_10(
          {static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(page), static_cast<std::uint32_t>(b), 1}, {0, 0});
      for (std::size_t j = 0; j < 8; ++j) {
        bounds[i + j] = static_cast<std::uint16_t>(0x3f80u | ((block[j / 2] >> (16 * (j % 2))) & 0x807fu));
      }
    }
    backend_->write(key_bounds_[b], static_cast<std::size_t>(page) * bytes, std::as_bytes(std::span(bounds)));
  }
  for (std::size_t b = 0; b < key_buckets_.size(); ++b) {
    if (layout_.key_buckets[b].pool != pool) continue;
    const std::size_t bytes = layout_.key_buckets[b].page_bytes;
    std::vector<std::uint8_t> buckets(bytes);
    for (std::size_t i = 0; i < bytes; i += 16) {
      const PhiloxBlock block = philox4x32_10(
          {static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(page), static_cast<std::uint32_t>(b), 2}, {0, 0});
      for (std::size_t j = 0; j < 16; ++j) {
        buckets[i + j] = static_cast<std::uint8_t>((block[j / 4] >> (8 * (j % 4))) % kHashBuckets);
      }
    }
    backend_->write(key_buckets_[b], static_cast<std::size_t>(page) * bytes, std::as_bytes(std::span(buckets)));
  }
}

}  // namespace millrace
