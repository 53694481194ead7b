// KvAllocator: the pages of all sequences: who has which, what is shared, what is promised. Pure bookkeeping.
//
// A row is `page_tokens` positions and takes one page in every cache group. Cache groups may take their pages from a
// common pool; it has a page for each of them in every row, and whoever gives one back gives it to all. What is
// promised is counted in the pages of each pool, what can be had in rows, of which the scarcest pool has the say.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kv/page_pool.h"
#include "kv/prefix_cache.h"
#include "sched/step_plan.h"

namespace millrace {

struct KvLimits {
  std::int32_t pages = 0;  // for each cache group
  std::int32_t page_tokens = 16;
  std::vector<std::int64_t> windows{0};  // of each cache group, 0 for none
  std::vector<std::int32_t> pools = {};  // of each cache group, from 0 on; empty: each has one of its own
  bool prefix_cache = true;
  std::int32_t rows_together = 1;  // PrefixCache
  bool share_parts = true;         // a row that is not full may be copied
  std::int32_t swap_pages = 0;     // for each cache group, behind all others of its pool: for sequences that wait
};

/// What a sequence has of KV memory. `tables` are its own; the rest is the allocator's.
struct SequenceKv {
  std::int64_t rows = 0;  // of each table, with those that were dropped
  std::vector<PageTable> tables;
  std::vector<PrefixCache::Node> nodes;  // locked nodes of its first rows
  std::size_t first_locked = 0;          // windows have passed the nodes before it, and they are unlocked
  PrefixCache::Node root = PrefixCache::kNone;
  PrefixCache::Node partial = PrefixCache::kNone;  // its own unfinished row, as others may find it
  std::vector<std::int64_t> reserved;              // [pools]: pages that it may still take without asking
  bool apart = false;                              // has dropped pages, and takes no more part in the prefix cache
  std::vector<std::vector<std::int32_t>> swapped;  // [groups][entries]: swap pages; empty: it is not swapped out

  [[nodiscard]] bool is_swapped() const { return !swapped.empty(); }
};

class KvAllocator {
 public:
  explicit KvAllocator(const KvLimits& limits);
  KvAllocator(const KvAllocator&) = delete;
  KvAllocator& operator=(const KvAllocator&) = delete;

  /// The memory of a new sequence: none. It must not outlive the allocator.
  SequenceKv make();

  [[nodiscard]] std::int32_t page_tokens() const { return limits_.page_tokens; }
  [[nodiscard]] std::int64_t total_rows() const { return limits_.pages; }
  /// Rows that are free or could be, and that nobody was promised.
  [[nodiscard]] std::int64_t available() const;
  [[nodiscard]] std::int64_t used_rows() const;    // held by sequences
  [[nodiscard]] std::int64_t cached_rows() const;  // held by the prefix cache alone
  [[nodiscard]] std::int64_t rows_for(std::int64_t tokens) const;
  [[nodiscard]] const PrefixCache& cache() const { return cache_; }
  /// Whether a sequence alone could have pages for `positions` in all cache groups, and later as many as `most`.
  [[nodiscard]] bool can_hold(std::int64_t positions, std::span<const std::int64_t> most) const;

  struct Candidate {
    std::string_view name;                    // the tree of the prefix cache
    std::span<const std::int32_t> tokens;     // at least one of them stays to be computed
    std::int64_t positions = 0;               // that rows are promised for: these, and tokens that are being sampled
    std::span<const std::int64_t> most = {};  // [groups]: pages that it has at most once some are dropped; or empty
    bool share = true;                        // takes what is known of them
    bool may_wait = true;                     // rather than compute what can be copied a step later
    std::int64_t spare = 0;                   // rows that must stay available to others
    std::int64_t step = 0;                    // the one that is being planned
  };
  struct Admission {
    std::int64_t cached_tokens = 0;  // whose keys and values are there
    std::int64_t wanted = 0;         // rows without which it is not admitted, `spare` among them
    bool wait = false;  // a step later more tokens can be had: this step fills a row that could be copied then
    bool admitted = false;
  };
  /// Gives `kv` what is known of the tokens and promises it rows. Copies for a partial row go to
  /// `copies`. Where the answer is not `admitted`, nothing has changed.
  Admission admit(SequenceKv& kv, const Candidate& candidate, std::vector<PageCopy>& copies);

  /// Pages for positions [0, tokens), from what was promised and then from what is available. False: too few.
  bool grow(SequenceKv& kv, std::int64_t tokens);

  /// Whole rows, in sets, behind the `computed` ones that others have computed meanwhile: the sequence takes theirs.
  /// Returns how many tokens that saves; at least one of `tokens` stays.
  std::int64_t catch_up(SequenceKv& kv, std::span<const std::int32_t> tokens, std::int64_t computed);

  /// Makes the rows known that are filled when the first `filled` positions of `tokens` are computed, a whole number of
  /// sets, in `step` or before; with `partial` the unfinished one too. Rows that no window reaches any more must be
  /// known already.
  void publish(SequenceKv& kv, std::span<const std::int32_t> tokens, std::int64_t filled, bool partial,
               std::int64_t step);

  /// Takes pages out of the tables for good: `entries` [groups], ascending. What remains of the sequence's pages in the
  /// prefix cache stays there for others, no longer locked by it, and what it fills from now on never goes there. It is
  /// promised what makes up to `most` pages of each group [groups], or nothing, as far as there are some. Returns how
  /// many of the pages nobody else uses: a page that another sequence has, too, gives no memory back.
  std::int64_t drop(SequenceKv& kv, std::span<const std::vector<std::int32_t>> entries,
                    std::span<const std::int64_t> most);

  /// Moves a sequence's pages out of the way of others, to be had back with swap_in(). Only where some were dropped.
  /// False, and nothing has changed: too little room to swap to.
  bool swap_out(SequenceKv& kv, std::vector<PageCopy>& copies);
  /// Promises pages as drop() does, and all of them: not admitted where they are not available beside `spare` rows.
  Admission swap_in(SequenceKv& kv, std::span<const std::int64_t> most, std::int64_t spare,
                    std::vector<PageCopy>& copies);

  /// Gives back what no window reaches from `position` on.
  void trim(SequenceKv& kv, std::int64_t position);

  /// Gives everything back. Rows that were published stay in the prefix cache until their pages are needed.
  void release(SequenceKv& kv);

  /// What step `step` or a later one fills was not computed: nobody finds it any more. Sequences that have some of it
  /// must be released before.
  void forget(std::int64_t step) { cache_.forget(step); }

  /// Aborts when the counts contradict each other; `live` are all sequences' memory. For tests.
  void check(std::span<const SequenceKv* const> live) const;

 private:
  [[nodiscard]] std::size_t groups() const { return limits_.windows.size(); }
  [[nodiscard]] std::size_t pool_of(std::size_t group) const { return static_cast<std::size_t>(limits_.pools[group]); }
  /// Pages of the pool that are free or could be; and of those such that nobody was promised.
  [[nodiscard]] std::int64_t unused(std::size_t pool) const {
    return pools_[pool].free_count() + cache_.evictable(pool);
  }
  [[nodiscard]] std::int64_t available(std::size_t pool) const { return unused(pool) - reserved_[pool]; }
  /// `pages` [groups] of all groups of a pool.
  [[nodiscard]] std::int64_t sum(std::span<const std::int64_t> pages, std::size_t pool) const;
  /// Pages that a sequence has of a pool.
  [[nodiscard]] std::int64_t held(const SequenceKv& kv, std::size_t pool) const;
  void check_pool(std::span<const SequenceKv* const> live, std::size_t pool) const;
  void make_room(std::size_t pool, std::int64_t pages);
  void reserve(SequenceKv& kv, std::size_t pool, std::int64_t pages);  // less, where there are fewer than none
  void leave_cache(SequenceKv& kv);
  void promise(SequenceKv& kv, std::span<const std::int64_t> most);
  void release_swapped(SequenceKv& kv);
  void release_pages(SequenceKv& kv);  // and what was promised; how many were dropped stays known
  void unlock_rows(SequenceKv& kv);
  /// What the row that holds position `at` is known by.
  [[nodiscard]] std::span<const std::int32_t> key(std::span<const std::int32_t> tokens, std::int64_t at) const;

  KvLimits limits_;
  std::int64_t window_;                  // of the group that sees farthest; 0: all
  std::vector<std::int32_t> groups_in_;  // [pools]
  std::vector<PagePool> pools_;
  std::vector<PagePool> swap_;  // [pools]: page p is behind all pages of the pool
  PrefixCache cache_;
  std::vector<std::int64_t> reserved_;  // [pools]: pages that sequences were promised
};

}  // namespace millrace
