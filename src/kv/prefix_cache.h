// PrefixCache: which pages already hold the keys and values of which tokens. Pure bookkeeping.
//
// A tree. A node is one row: `page_tokens` consecutive tokens behind the tokens of its ancestors, and the page that
// holds them in each cache group. Sequences lock the nodes of their own tokens, the tree itself holds one reference to
// every page, and what nobody locks can be evicted, least recently used first and always from the leaves. A leaf may
// also be partial: fewer tokens than a page, of which a sequence that begins with them makes a copy and goes on in it
// (copy-on-write). Whatever is found is compared token by token: there are no hashes to collide.
//
// Trees are apart by name: what numeric class, recipe and rope regime computed the pages, and whose they are (a salt
// keeps tenants from finding out each other's prompts by timing).
#pragma once

#include <boost/container/small_vector.hpp>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kv/page_pool.h"

namespace millrace {

/// Not thread-safe: one owner. The pools must outlive it.
class PrefixCache {
 public:
  using Node = std::int32_t;
  static constexpr Node kNone = -1;

  /// `pool_of`: which of the pools each cache group takes its pages from; empty: there is one a group. `window`: how
  /// many positions back the group that sees farthest looks, 0 for all; with a window, rows that everybody's window has
  /// passed can be evicted from under their children.
  ///
  /// `together`: where rows are computed in sets of as many, what a row holds depends on the tokens of all its set.
  /// They are what it is known by then, and the next row of the set stands behind it with the same ones; there are no
  /// partial rows.
  PrefixCache(std::span<PagePool> pools, std::int32_t page_tokens, std::int64_t window, std::int32_t together = 1,
              std::span<const std::int32_t> pool_of = {});

  /// The root of the tree `name`, locked.
  Node lock_root(std::string_view name);

  struct Match {
    std::vector<Node> rows;  // whole rows found, from the root down; below a window some may have no pages
    Node partial = kNone;    // a row whose first tokens come next: copy its pages
    std::int32_t partial_tokens = 0;
    std::int32_t coming_tokens = 0;  // the same of a row that step `step` or a later one fills, not to be copied yet
  };
  /// The longest known beginning of `tokens` behind `root`, in whole sets of rows, for a sequence that joins step
  /// `step`. Locks nothing.
  [[nodiscard]] Match match(Node root, std::span<const std::int32_t> tokens, std::int64_t step) const;

  /// The row of exactly these tokens, of a page or its set; kNone if there is none with pages.
  [[nodiscard]] Node find(Node parent, std::span<const std::int32_t> tokens) const;

  /// Makes the row known, whose pages [groups] a sequence fills in step `step`, and locks it. Of a row that is known
  /// already and that somebody uses, the tree keeps the pages that it has, and the caller's stay the caller's own; if
  /// nobody does, the caller's take their place, so that a lock never takes more than the caller holds anyway. `parent`
  /// must be locked.
  Node insert(Node parent, std::span<const std::int32_t> tokens, std::span<const std::int32_t> pages,
              std::int64_t step);

  /// The same with fewer tokens than a page; kNone where another sequence's is known already: a part has one owner,
  /// since its page goes on being filled.
  Node insert_partial(Node parent, std::span<const std::int32_t> tokens, std::span<const std::int32_t> pages,
                      std::int64_t step);

  void lock(Node node);
  /// The last unlock makes the row the most recently used of those that can be evicted. Unlock children before parents.
  void unlock(Node node);
  /// Unlocks a partial row, whose owner is the only one to lock it, and forgets it: its page has become more than that.
  void drop_partial(Node node);

  /// A sequence that is about to unlock the row goes on holding its page of one cache group, without keeping the row
  /// from being evicted. It says so itself when it lets the page go.
  void hold_page(Node node, std::size_t group);
  /// Nothing where no row has the page, or no longer.
  void let_page_go(std::size_t group, std::int32_t page);

  /// Forgets the row that was used least recently, of those whose pages nobody holds if there are some, and frees those
  /// of its pages that nobody holds; false when every row is locked.
  bool evict();

  /// Forgets all rows that step `step` or a later one fills: what they were to hold was not computed. A row that is
  /// locked, or has others behind it, stays without pages until somebody fills it again.
  void forget(std::int64_t step);

  /// Rows that evict() could forget.
  [[nodiscard]] std::int64_t evictable() const { return evictable_; }
  /// Pages of a pool that evict() could free.
  [[nodiscard]] std::int64_t evictable(std::size_t pool) const { return evictable_ * groups_in_[pool] - held_[pool]; }
  /// Rows in the trees that have pages.
  [[nodiscard]] std::int64_t rows() const { return rows_; }

  /// Goes through all whole rows, each behind its parent. `begin(name)` is what is known at the root of a tree,
  /// `row(known, tokens, has_pages)` what is known behind a row. Where rows are known by sets, there is nothing to see.
  template <typename Begin, typename Row>
  void visit(const Begin& begin, const Row& row) const {
    if (together_ > 1) return;
    std::vector<std::pair<Node, decltype(begin(std::string_view()))>> open;
    for (const auto& [name, root] : roots_) {
      open.emplace_back(root, begin(std::string_view(name)));
      while (!open.empty()) {
        const auto [node, known] = open.back();
        open.pop_back();
        for (const Node child : at(node).children) {
          const Entry& entry = at(child);
          if (entry.filled == page_tokens_) open.emplace_back(child, row(known, tokens(child), !entry.hollow));
        }
      }
    }
  }

  /// [groups]; -1 where the row was evicted from under its children.
  [[nodiscard]] std::span<const std::int32_t> pages(Node node) const;
  /// Whether a lock would take the row from those that evict() could forget.
  [[nodiscard]] bool can_be_evicted(Node node) const { return at(node).users == 0 && !at(node).hollow; }
  /// The step that fills the row: in it the row can be attended to, and copied in a later one only.
  [[nodiscard]] std::int64_t step(Node node) const { return at(node).step; }
  /// Aborts when the counts contradict each other, or a row that can be evicted has pages that somebody else holds. For
  /// tests.
  void check() const;
  /// Adds one to references[page], of its pool, for every page of cache group `group` that the trees hold. For tests.
  void count_references(std::size_t group, std::span<std::int32_t> references) const;

 private:
  using Children = boost::container::small_vector<Node, 2>;  // most have one: no memory of its own

  struct Entry {
    Node parent = kNone;
    Node newer = kNone, older = kNone;  // among the evictable
    std::int32_t users = 0;
    std::int32_t filled = 0;
    bool hollow = false;  // evicted from under its children, or forgotten
    std::int64_t step = 0;
    Children children;                                        // sorted by tokens
    std::map<std::string, Node, std::less<>>::iterator name;  // of a root
  };

  [[nodiscard]] const Entry& at(Node node) const { return entries_[static_cast<std::size_t>(node)]; }
  Entry& at(Node node) { return entries_[static_cast<std::size_t>(node)]; }
  [[nodiscard]] std::span<const std::int32_t> tokens(Node node) const;
  [[nodiscard]] std::size_t lower_bound(const Entry& parent, std::span<const std::int32_t> tokens) const;
  [[nodiscard]] bool is_root(Node node) const { return at(node).parent == kNone; }

  Node new_entry(Node parent, std::span<const std::int32_t> tokens);
  Node add(Node parent, std::span<const std::int32_t> tokens, std::span<const std::int32_t> pages, std::int64_t step);
  void hold_pages(Node node, std::span<const std::int32_t> pages);
  void release_pages(Node node);
  /// The one that was used least recently; but what sequences hold frees nothing, and stays as long as others are near.
  [[nodiscard]] Node next_to_go() const;
  void remove(Node node);  // a leaf without pages or users; then its ancestors as far as they are the same
  void list_newest(Node node);
  void unlist(Node node);
  void count_held(Node node, std::int64_t one);  // of a row that can be evicted now, or could till now

  [[nodiscard]] std::size_t groups() const { return pool_of_.size(); }
  [[nodiscard]] PagePool& pool(std::size_t group) const { return pools_[pool_of_[group]]; }

  std::span<PagePool> pools_;
  std::vector<std::size_t> pool_of_;     // [groups]
  std::vector<std::int64_t> groups_in_;  // [pools]
  std::int32_t page_tokens_;
  std::int32_t together_;
  std::int32_t key_tokens_;  // that a row is known by
  std::int64_t window_;
  std::vector<Entry> entries_;
  std::vector<std::int32_t> tokens_;            // [entries][key_tokens_]
  std::vector<std::int32_t> pages_;             // [entries][groups]
  std::vector<std::int32_t> holders_;           // [entries][groups]: sequences that hold the page and no lock
  std::vector<std::vector<Node>> row_of_page_;  // [pools][pages]: a page is of one group as long as it is in use
  std::vector<std::int64_t> held_;              // [pools]: pages of evictable rows that have holders
  std::vector<Node> unused_;
  std::map<std::string, Node, std::less<>> roots_;
  Node newest_ = kNone, oldest_ = kNone;
  std::int64_t evictable_ = 0, rows_ = 0;
};

}  // namespace millrace
