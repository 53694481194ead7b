// Which pages of a sequence are kept in one cache group. Pure: what attention pages had in, entries to drop out.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kv/moved_pages.h"
#include "recipe/kv_retention.h"

namespace millrace {

/// The pages of one sequence, entry by entry of its page table.
class PageKeeper {
 public:
  /// `lot`: tells draws by lot apart. Positions before `pinned` are kept, beside the others.
  PageKeeper(const KvRetention& retention, std::int32_t page_tokens, std::int64_t pinned, std::uint32_t lot)
      : retention_(retention), page_tokens_(page_tokens), pinned_(pinned), lot_(lot) {}

  /// Pages that are kept at most, beside the one that is being filled.
  [[nodiscard]] std::int64_t most() const;

  /// Rows at positions [first, end) have given these masses (in kMassUnit, of all heads and layers) to the pages of the
  /// table, which reaches position `end`.
  void add(std::span<const std::uint64_t> masses, std::int64_t first, std::int64_t end);

  /// The entries of the table that are dropped when positions [0, end) are filled, ascending; the others stand closed
  /// up then. Kept are the first pages, the most recent ones, and of the rest those with the largest masses by the rows
  /// that have seen them, of equal ones the earlier.
  std::vector<std::int32_t> drop(std::int64_t end);

  /// How rows of the page of `position`, which has all pages before it behind it, see the entries of the table, where
  /// the model knows distances of less than `context` positions (a whole number of pages, more than are kept). Pages
  /// that are further away count as if they stood at the far end of the context, one behind the other; others stay
  /// where they are. Empty where that is all of them; else the last has moved by 0, and reaches to the table's end.
  [[nodiscard]] std::vector<MovedPages> moved(std::int64_t position, std::int64_t context) const;

 private:
  struct Page {
    std::int64_t number = 0;  // of positions from number * page_tokens on
    std::uint64_t mass = 0;
    std::int64_t rows = 0;  // that have seen it
  };

  void reach(std::int64_t end);
  [[nodiscard]] double worth(const Page& page) const;

  KvRetention retention_;
  std::int32_t page_tokens_;
  std::int64_t pinned_;
  std::uint32_t lot_;
  std::int64_t next_ = 0;  // number of the next page
  std::vector<Page> pages_;
};

}  // namespace millrace
