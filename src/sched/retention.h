// What a sequence keeps of its past, in all cache groups: when that is decided, and by what. Pure.
//
// Decisions have fixed places: where the answer begins, and behind each full page of it. Rows behind such a place wait
// for the decision, and what it goes by is summed in whole numbers. So what a row sees depends on the tokens before it
// alone: not on how steps were cut, who else was there, or whether the sequence was computed once or again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "kv/page_keeper.h"
#include "kv/page_masses.h"
#include "recipe/kv_retention.h"

namespace millrace {

class Retention {
 public:
  static constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

  /// `windows`: of the cache groups, 0 for none; groups with a window keep what it reaches, others are levels. Rows
  /// from `answer_begin` on are the answer's. Positions before `pinned` are kept for ever.
  Retention(const KvRetention& retention, std::span<const std::int64_t> windows, std::int32_t page_tokens,
            std::int64_t answer_begin, std::int64_t pinned);

  /// Rows from this position on wait for decide().
  [[nodiscard]] std::int64_t next_decision() const { return next_; }
  /// Attention of rows from this position on counts.
  [[nodiscard]] std::int64_t measured_from() const { return measured_from_; }
  /// Of those, how many of a prompt's last rows must be computed, whoever else has their keys and values.
  [[nodiscard]] std::int64_t computed_from() const { return std::min(measured_from_, answer_begin_); }
  /// Pages that a group's table has at most, from the first decision on: with a window what that reaches.
  [[nodiscard]] std::int64_t most_pages(std::size_t group) const;

  /// The same of the groups without a window, and without the page that is being filled.
  [[nodiscard]] std::int64_t kept_pages() const;

  /// Rows at positions [first, end) ran as entry `sequence` of a step with these masses.
  void add(const PageMasses& masses, std::size_t sequence, std::int64_t first, std::int64_t end);

  /// Positions [0, next_decision()) are computed: what is dropped of each group's table [groups], ascending.
  std::vector<std::vector<std::int32_t>> decide();

  /// How rows behind the last decision see what their tables have, for each group: empty where that is as it stands.
  [[nodiscard]] std::span<const std::vector<MovedPages>> moved() const { return moved_; }

  /// Nothing has been computed: the sequence is, from the start, once more.
  void restart();

 private:
  KvRetention retention_;
  std::int32_t page_tokens_;
  std::int64_t answer_begin_, measured_from_, next_;
  std::int64_t pinned_;
  std::vector<std::int64_t> windows_;
  std::vector<std::vector<MovedPages>> moved_;      // [groups], or none have
  std::vector<std::optional<PageKeeper>> keepers_;  // [groups]
};

}  // namespace millrace
