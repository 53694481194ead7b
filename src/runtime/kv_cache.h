// The KV memory of a model on its device: one buffer of pages a pool, which cache groups may have in common. Who has
// which page is not known here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "core/result.h"
#include "kv/page_layout.h"
#include "sched/kv_allocator.h"
#include "sched/step_plan.h"

namespace millrace {

class KvCache {
 public:
  /// `pages` pages for every cache group, and behind all of a pool's as many times `swap_pages`. Error: no memory.
  static Result<std::unique_ptr<KvCache>> create(const PageLayout& layout, std::int32_t pages, std::int32_t swap_pages,
                                                 Backend& backend);

  [[nodiscard]] const PageLayout& layout() const { return layout_; }
  [[nodiscard]] std::span<const KvLayer> layers() const { return layers_; }
  /// The window of each cache group, 0 for none.
  [[nodiscard]] std::vector<std::int64_t> windows() const;
  /// Which pool each of them takes its pages from.
  [[nodiscard]] std::vector<std::int32_t> pools() const;
  [[nodiscard]] std::int32_t pages() const { return pages_; }
  [[nodiscard]] std::int32_t swap_pages() const { return swap_pages_; }
  [[nodiscard]] std::int64_t token_capacity() const { return std::int64_t{pages_} * layout_.page_tokens; }

  /// Copies pages within the pools of their groups, in the order of the list.
  void copy(std::span<const PageCopy> copies);

  /// Keys and values of ordinary size that nobody computed, for measurements of speed.
  void fill_with_noise(std::size_t group, std::int32_t page);

 private:
  explicit KvCache(Backend& backend) : backend_(&backend) {}

  Backend* backend_;
  PageLayout layout_;
  std::int32_t pages_ = 0, swap_pages_ = 0;
  std::vector<Buffer> memory_;  // [pools]
  std::vector<Buffer> key_bounds_, key_buckets_;
  std::vector<KvLayer> layers_;
  std::vector<std::vector<std::byte>> noise_;  // of a page of each group, once it is wanted
};

/// What an allocator of its pages goes by.
KvLimits kv_limits(const KvCache& cache);

}  // namespace millrace
