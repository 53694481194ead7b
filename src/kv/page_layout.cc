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

/// Groups that have a window, or another size of page than others, have a pool of their own.
void share_pools(PageLayout& layout) {
  for (CacheGroup& group : layout.groups) {
    const auto shared = std::ranges::find_if(layout.groups, [&](const CacheGroup& other) {
      return &other == &group || (other.window == 0 && group.window == 0 && other.page_bytes == group.page_bytes);
    });
    if (&*shared == &group) {
      group.pool = static_cast<std::int32_t>(layout.pools.size());
      layout.pools.push_back({.page_bytes = group.page_bytes});
    } else {
      group.pool = shared->pool;
    }
    ++layout.pools[static_cast<std::size_t>(group.pool)].groups;
  }
}

/// Bounds, or buckets, as they are asked for: what the first layer of a group has stands together with what the first
/// of another group in its pool has, and so on.
class NotesPlacer {
 public:
  NotesPlacer(const PageLayout& layout, std::vector<KeyNotes>& notes) : layout_(layout), notes_(notes) {
    counts_.resize(layout.groups.size());
  }
  std::int32_t place(std::int32_t group, std::size_t page_bytes) {
    const std::int32_t pool = layout_.groups[static_cast<std::size_t>(group)].pool;
    const std::int32_t before = counts_[static_cast<std::size_t>(group)]++;
    std::int32_t of_pool = 0;
    for (std::size_t n = 0; n < notes_.size(); ++n) {
      if (notes_[n].pool != pool || of_pool++ != before) continue;
      notes_[n].page_bytes = std::max(notes_[n].page_bytes, page_bytes);
      return static_cast<std::int32_t>(n);
    }
    notes_.push_back({pool, page_bytes});
    return static_cast<std::int32_t>(notes_.size() - 1);
  }

 private:
  const PageLayout& layout_;
  std::vector<KeyNotes>& notes_;
  std::vector<std::int32_t> counts_;  // [groups]: layers that have some
};

}  // namespace

std::size_t PageLayout::bytes_per_page_row() const {
  std::size_t total = 0;
  for (const CacheGroup& group : groups) total += group.page_bytes;
  const auto pages = [this](const KeyNotes& notes) {
    return static_cast<std::size_t>(pools[static_cast<std::size_t>(notes.pool)].groups);
  };
  for (const KeyNotes& bounds : key_bounds) total += bounds.page_bytes * pages(bounds);
  for (const KeyNotes& buckets : key_buckets) total += buckets.page_bytes * pages(buckets);
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
  }
  share_pools(layout);
  NotesPlacer bounds(layout, layout.key_bounds), buckets(layout, layout.key_buckets);
  for (std::size_t l = 0; l < shapes.size(); ++l) {
    const KvShape& shape = shapes[l];
    KvPlace& place = layout.layers[l];
    if (shape.source_layer >= 0) {
      place = layout.layers[static_cast<std::size_t>(shape.source_layer)];
      continue;
    }
    const auto heads = static_cast<std::size_t>(shape.kv_heads);
    if (shape.key_bounds) {
      const std::size_t numbers = heads * 2 * kv_bound_numbers(static_cast<std::size_t>(shape.head_dim));
      place.key_bounds = bounds.place(place.group, numbers * sizeof(std::uint16_t));
    }
    if (shape.key_buckets) {
      place.key_buckets = buckets.place(place.group, padded(heads * static_cast<std::size_t>(page_tokens)));
      place.hash = {*shape.key_buckets, static_cast<std::uint32_t>(l)};
    }
  }
  return layout;
}

}  // namespace millrace
