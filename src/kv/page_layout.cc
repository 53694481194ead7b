#include "kv/page_layout.h"

#include <algorithm>

#include "core/check.h"

namespace millrace {

namespace {

// Every key and value block starts on a cache line, so that no two layers or heads' groups share one.
constexpr std::size_t kBlockAlignment = 64;

std::size_t padded(std::size_t bytes) {
  return (bytes + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment;
}

std::int32_t group_of(PageLayout& layout, const KvShape& shape) {
  const std::int32_t level = shape.window == 0 ? shape.level : 0;
  for (std::size_t g = 0; g < layout.groups.size(); ++g) {
    if (layout.groups[g].window == shape.window && layout.groups[g].level == level) return static_cast<std::int32_t>(g);
  }
  layout.groups.push_back({.window = shape.window, .level = level});
  return static_cast<std::int32_t>(layout.groups.size() - 1);
}

}  // namespace

std::size_t PageLayout::bytes_per_page_row() const {
  std::size_t total = 0;
  for (const CacheGroup& group : groups) total += group.page_bytes;
  for (const KeyBounds& bounds : key_bounds) total += bounds.page_bytes;
  for (const KeyBuckets& buckets : key_buckets) total += buckets.page_bytes;
  return total;
}

PageLayout make_page_layout(std::span<const KvShape> shapes, std::int32_t page_tokens, KvFormat format) {
  PageLayout layout;
  layout.page_tokens = page_tokens;
  layout.format = format;
  for (const KvShape& shape : shapes) {
    if (shape.source_layer >= 0) {
      MILLRACE_CHECK(static_cast<std::size_t>(shape.source_layer) < layout.layers.size(), "KV source {} of layer {}",
                     shape.source_layer, layout.layers.size());
      const KvShape& source = shapes[static_cast<std::size_t>(shape.source_layer)];
      MILLRACE_CHECK(source.kv_heads == shape.kv_heads && source.head_dim == shape.head_dim,
                     "layer {} reads keys of another shape", layout.layers.size());
      layout.layers.push_back(layout.layers[static_cast<std::size_t>(shape.source_layer)]);
      continue;
    }
    const std::int32_t group = group_of(layout, shape);
    std::size_t& end = layout.groups[static_cast<std::size_t>(group)].page_bytes;
    const std::size_t slots = static_cast<std::size_t>(shape.kv_heads) * static_cast<std::size_t>(page_tokens);
    const std::size_t elements = kv_elements(format, static_cast<std::size_t>(shape.head_dim));
    const std::size_t numbers = padded(slots * elements * kv_element_bytes(format));
    const std::size_t block = numbers + padded(kv_scales(format) * slots * sizeof(float));
    layout.layers.push_back({.group = group,
                             .key_offset = end,
                             .value_offset = end + block,
                             .key_scale_offset = end + numbers,
                             .value_scale_offset = end + block + numbers});
    end += 2 * block;
    if (shape.key_bounds) {
      layout.layers.back().key_bounds = static_cast<std::int32_t>(layout.key_bounds.size());
      layout.key_bounds.push_back({group, static_cast<std::size_t>(shape.kv_heads) * 2 *
                                              kv_bound_numbers(static_cast<std::size_t>(shape.head_dim)) *
                                              sizeof(std::uint16_t)});
    }
    if (shape.key_buckets) {
      layout.layers.back().key_buckets = static_cast<std::int32_t>(layout.key_buckets.size());
      layout.key_buckets.push_back(
          {.group = group,
           .page_bytes = padded(slots),
           .hash = {*shape.key_buckets, static_cast<std::uint32_t>(layout.layers.size() - 1)}});
    }
  }
  return layout;
}

}  // namespace millrace
