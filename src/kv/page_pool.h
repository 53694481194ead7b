// PagePool: pages of one size, handed out and counted. PageTable: one sequence's pages in one cache group, in
// order. Pure bookkeeping: page numbers only, no memory.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace millrace {

/// Pages 0 .. count-1 with a reference count each. A page is free when nobody refers to it. Not thread-safe: one owner.
class PagePool {
 public:
  explicit PagePool(std::int32_t count);

  /// A free page, now referred to once; empty when there is none.
  std::optional<std::int32_t> acquire();
  void retain(std::int32_t page);
  void release(std::int32_t page);

  [[nodiscard]] std::int32_t references(std::int32_t page) const { return references_[static_cast<std::size_t>(page)]; }
  [[nodiscard]] std::int32_t count() const { return static_cast<std::int32_t>(references_.size()); }
  [[nodiscard]] std::int32_t free_count() const { return static_cast<std::int32_t>(free_.size()); }

 private:
  std::vector<std::int32_t> references_;
  std::vector<std::int32_t>
      free_;  // a stack: the page freed last is handed out first, while it may still be in a cache
};

/// Owns its references: they go back to the pool with the table. The pool must outlive it. Movable.
class PageTable {
 public:
  PageTable(PagePool& pool, std::int32_t page_tokens) : pool_(&pool), page_tokens_(page_tokens) {}
  PageTable(PageTable&& other) noexcept;
  PageTable& operator=(PageTable&& other) noexcept;
  ~PageTable();

  /// Makes sure that positions [0, tokens) have pages, or had some that were dropped. False, and nothing changed, when
  /// the pool has too few.
  bool grow(std::int64_t tokens);

  /// Appends a page that others hold too: the table takes a reference of its own. -1: a place without a page, which is
  /// only possible below all others.
  void append(std::int32_t page);

  /// Appends a page that the caller has acquired: its reference becomes the table's.
  void take(std::int32_t page) { entries_.push_back(page); }

  /// Gives back every page.
  void clear();
  /// The same, but how many were dropped stays known.
  void clear_entries();

  /// Gives back the pages that lie wholly below `position`; their entries become -1. For windows that have moved on.
  void trim_below(std::int64_t position);

  /// Gives back the pages of some entries, ascending, and closes up: what was behind them moves forward.
  void drop(std::span<const std::int32_t> entries);

  [[nodiscard]] std::span<const std::int32_t> entries() const { return entries_; }
  /// Entries that were dropped: positions that no entry is for any more, in pages.
  [[nodiscard]] std::int64_t dropped() const { return dropped_; }

 private:
  PagePool* pool_;
  std::int32_t page_tokens_;
  std::size_t first_held_ = 0;  // entries before it are -1
  std::int64_t dropped_ = 0;
  std::vector<std::int32_t> entries_;
};

}  // namespace millrace
