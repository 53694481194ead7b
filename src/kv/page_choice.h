// Which pages a row reads that does not read all of the past. Pure: positions and scores in, pages out.
#pragma once

#include <cstdint>
#include <vector>

#include "recipe/page_selection.h"

namespace millrace {

/// The pages that a row may leave out are [first, end): it reads those before and behind them always, and `chosen` of
/// them.
struct PageCandidates {
  std::int64_t first = 0, end = 0;
  std::int64_t chosen = 0;
  bool by_mass = false;  // it may be fewer than `chosen`

  /// It reads everything.
  [[nodiscard]] bool all() const { return end == first || (!by_mass && chosen >= end - first); }
};

/// For a row at `position`, which sees all positions before it. Where it leaves something out, later positions do too.
PageCandidates page_candidates(const PageSelection& selection, std::int64_t position, std::int32_t page_tokens);

/// What tells draws by lot apart, beside the page.
struct PageLot {
  std::int64_t position = 0;
  std::uint32_t layer = 0, kv_head = 0;
};

class PageChooser {
 public:
  /// Pages that a row at `position` reads, ascending, the last its own. `scores` [queries][stride] has bounds of the
  /// scores of the queries that read together with the keys of each candidate, the first at [0]; with other choices it
  /// is null. A page counts with its best bound less the best that the query has with any; NaN is less than all. Of
  /// equal pages the earlier is taken. By mass a bound weighs its exponential, times `scale` before; pages that no
  /// query wants are left out, in steps of an eighth of a nat. Valid until the next call.
  const std::vector<std::int32_t>& choose(const PageSelection& selection, const PageCandidates& candidates,
                                          std::int64_t last_page, const float* scores, std::int64_t queries,
                                          std::int64_t stride, const PageLot& lot, float scale = 1.0f);

 private:
  /// Pages whose worth is above that of `key` are chosen, and the first `equal` of those that have the same.
  struct Threshold {
    std::uint32_t key = 0;
    std::int64_t equal = 0;
  };
  Threshold threshold_of(std::int64_t chosen);
  /// Marks the pages that a query wants, whose bounds [count] have `best` as the largest.
  void want(const float* bounds, float best, double mass, float scale);

  std::vector<float> worth_;          // of the candidates
  std::vector<std::uint8_t> wanted_;  // by some query, by mass
  std::vector<std::int32_t> counts_, pages_;
};

}  // namespace millrace
