// Where the pages of a sequence that is longer than its model's context count as if they stood. Pure.
#pragma once

#include <cstdint>

namespace millrace {

/// Entries of a page table from `first` on, up to the next of these: rows see their keys as if they stood `by`
/// positions later. A rotation depends on how far two positions are apart alone, so it is the queries that are turned
/// back by so much, and no key is touched.
struct MovedPages {
  std::int32_t first = 0;
  std::int64_t by = 0;  // a multiple of the page's positions

  bool operator==(const MovedPages&) const = default;
};

}  // namespace millrace
