// What a page of KV memory holds. Pure: shapes in, offsets and bytes out.
//
// Layers that see the same range of the past share one page table: a cache group (all full-attention layers, or those
// of one level, where levels keep pages of their own; all layers of one window size). Levels whose pages have the same
// size take them from a common pool, so that what one level drops any other can use. A page of a group holds
// `page_tokens` consecutive positions of one sequence for every layer of the group, keys [kv_heads, head_dim,
// page_tokens], then values [kv_heads, page_tokens, head_dim]; each followed, where the format has scales, by those:
// floats [kv_heads, page_tokens], and then as many middles if it has them. int4 has two numbers in a byte, so its
// head_dim counts pairs here, the last filled up.
//
// Beside the pages of a layer whose keys rows select by lie bounds of the keys of each: bf16 [kv_heads][the largest,
// the smallest][kv_bound_numbers(head_dim)]. They are read for many pages by every row, so those of one layer stand
// together. Likewise, of layers whose prompts are approximate,
// buckets of keys: a byte for each, [kv_heads][page_tokens]; both are copied with a page. Where a page may be of any
// level, so may what lies beside it: it is by the layer's place among those of its level that have some.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kv/key_hash.h"
#include "quant/kv_format.h"

namespace millrace {

/// What the layout needs to know of a layer.
struct KvShape {
  std::int32_t kv_heads = 0;
  std::int32_t head_dim = 0;
  std::int64_t window = 0;                        // 0: full attention
  std::int32_t source_layer = -1;                 // the layer stores nothing and reads that one's pages; -1: its own
  bool key_bounds = false;                        // of the keys that it stores
  std::optional<std::uint64_t> key_buckets = {};  // likewise: the seed of their planes
  std::int32_t level = 0;                         // of full attention: which layers share a page table
};

struct CacheGroup {
  std::int64_t window = 0;
  std::size_t page_bytes = 0;
  std::int32_t level = 0;
  std::int32_t pool = 0;  // that its pages are of
};

/// Pages of one size, and who takes them.
struct PoolShape {
  std::size_t page_bytes = 0;
  std::int32_t groups = 0;
};

/// Bounds or buckets of the keys of one layer in each group of a pool.
struct KeyNotes {
  std::int32_t pool = 0;
  std::size_t page_bytes = 0;  // of one page's; of buckets a whole number of cache lines
};

/// Where a layer's keys and values lie in a page of its group.
struct KvPlace {
  std::int32_t group = 0;
  std::size_t key_offset = 0;
  std::size_t value_offset = 0;
  std::size_t key_scale_offset = 0;  // of meaning where the format has scales; middles follow them
  std::size_t value_scale_offset = 0;
  std::int32_t key_bounds = -1;   // which of the layout's; -1: none
  std::int32_t key_buckets = -1;  // likewise
  KeyHash hash = {};              // of the buckets
};

struct PageLayout {
  std::int32_t page_tokens = 16;
  KvFormat format = KvFormat::f32;
  std::vector<CacheGroup> groups;
  std::vector<PoolShape> pools;
  std::vector<KvPlace> layers;  // one a model layer; a layer with a source has its source's place
  std::vector<KeyNotes> key_bounds;
  std::vector<KeyNotes> key_buckets;

  /// Bytes of one page in every group, and of its bounds and buckets: the memory of `page_tokens` tokens before any
  /// window moves on.
  [[nodiscard]] std::size_t bytes_per_page_row() const;
  /// Pages that `tokens` positions take.
  [[nodiscard]] std::int64_t pages_for(std::int64_t tokens) const { return (tokens + page_tokens - 1) / page_tokens; }
};

/// A source layer must come before the layers that read it and have a source of its own nowhere.
PageLayout make_page_layout(std::span<const KvShape> shapes, std::int32_t page_tokens, KvFormat format);

}  // namespace millrace
