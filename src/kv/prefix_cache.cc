#include "kv/prefix_cache.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "core/check.h"

namespace millrace {

namespace {

std::size_t common_prefix(std::span<const std::int32_t> a, std::span<const std::int32_t> b) {
  const std::size_t most = std::min(a.size(), b.size());
  std::size_t count = 0;
  while (count < most && a[count] == b[count]) ++count;
  return count;
}

}  // namespace

PrefixCache::PrefixCache(std::span<PagePool> pools, std::int32_t page_tokens, std::int64_t window,
                         std::int32_t together, std::span<const std::int32_t> pool_of)
    : pools_(pools),
      pool_of_(pool_of.begin(), pool_of.end()),
      groups_in_(pools.size(), 0),
      page_tokens_(page_tokens),
      together_(together),
      key_tokens_(page_tokens * together),
      window_(window),
      held_(pools.size(), 0) {
  if (pool_of_.empty()) {
    pool_of_.resize(pools.size());
    std::iota(pool_of_.begin(), pool_of_.end(), 0);
  }
  for (const std::size_t pool : pool_of_) ++groups_in_[pool];
  for (const PagePool& pool : pools) row_of_page_.emplace_back(static_cast<std::size_t>(pool.count()), kNone);
}

std::span<const std::int32_t> PrefixCache::tokens(Node node) const {
  return {tokens_.data() + static_cast<std::size_t>(node) * static_cast<std::size_t>(key_tokens_),
          static_cast<std::size_t>(at(node).filled)};
}

std::span<const std::int32_t> PrefixCache::pages(Node node) const {
  return {pages_.data() + static_cast<std::size_t>(node) * groups(), groups()};
}

std::size_t PrefixCache::lower_bound(const Entry& parent, std::span<const std::int32_t> wanted) const {
  const auto found = std::lower_bound(
      parent.children.begin(), parent.children.end(), wanted, [this](Node child, std::span<const std::int32_t> other) {
        const std::span<const std::int32_t> own = tokens(child);
        return std::lexicographical_compare(own.begin(), own.end(), other.begin(), other.end());
      });
  return static_cast<std::size_t>(found - parent.children.begin());
}

PrefixCache::Node PrefixCache::lock_root(std::string_view name) {
  auto found = roots_.find(name);
  if (found == roots_.end()) {
    found = roots_.emplace(std::string(name), kNone).first;
    found->second = new_entry(kNone, {});
    at(found->second).name = found;
  }
  ++at(found->second).users;
  return found->second;
}

PrefixCache::Node PrefixCache::find(Node parent, std::span<const std::int32_t> wanted) const {
  const Entry& entry = at(parent);
  const std::size_t place = lower_bound(entry, wanted);
  if (place == entry.children.size()) return kNone;
  const Node child = entry.children[place];
  return !at(child).hollow && std::ranges::equal(tokens(child), wanted) ? child : kNone;
}

PrefixCache::Match PrefixCache::match(Node root, std::span<const std::int32_t> wanted, std::int64_t step) const {
  const auto key = static_cast<std::size_t>(key_tokens_), together = static_cast<std::size_t>(together_);
  Match match;
  std::size_t usable = 0;       // rows of match.rows that can be used together
  std::int64_t with_pages = 0;  // rows in a row, up to the last one, that have pages
  Node last = root;
  while (wanted.size() >= key) {
    const Entry& entry = at(last);
    const std::size_t place = lower_bound(entry, wanted.first(key));
    if (place == entry.children.size()) break;
    const Node child = entry.children[place];
    if (!std::ranges::equal(tokens(child), wanted.first(key))) break;
    match.rows.push_back(child);
    with_pages = at(child).hollow ? 0 : with_pages + 1;
    last = child;
    if (match.rows.size() % together != 0) continue;
    const auto length = static_cast<std::int64_t>(match.rows.size());
    if (with_pages == length || (window_ > 0 && with_pages * page_tokens_ >= window_)) usable = match.rows.size();
    wanted = wanted.subspan(key);
  }
  if (usable < match.rows.size() || together > 1) {
    match.rows.resize(usable);
    return match;
  }
  // In the order of tokens the longest common beginning stands beside the place where the wanted ones would be.
  const Entry& entry = at(last);
  const std::span<const std::int32_t> next = wanted.first(std::min(key, wanted.size()));
  const std::size_t place = lower_bound(entry, next);
  for (const std::size_t candidate : {place, place - 1}) {  // place - 1 of 0 wraps beyond the end
    if (candidate >= entry.children.size()) continue;
    const Node child = entry.children[candidate];
    if (at(child).hollow) continue;
    const auto common = static_cast<std::int32_t>(common_prefix(tokens(child), next));
    if (at(child).step >= step) {
      match.coming_tokens = std::max(match.coming_tokens, common);
    } else if (common > match.partial_tokens) {
      match.partial = child;
      match.partial_tokens = common;
    }
  }
  return match;
}

PrefixCache::Node PrefixCache::new_entry(Node parent, std::span<const std::int32_t> row) {
  Node node = 0;
  if (unused_.empty()) {
    node = static_cast<Node>(entries_.size());
    entries_.emplace_back();
    tokens_.resize(tokens_.size() + static_cast<std::size_t>(key_tokens_));
    pages_.resize(pages_.size() + groups());
    holders_.resize(pages_.size(), 0);
  } else {
    node = unused_.back();
    unused_.pop_back();
    at(node) = {};
  }
  at(node).parent = parent;
  at(node).filled = static_cast<std::int32_t>(row.size());
  std::ranges::copy(row, tokens_.begin() + static_cast<std::ptrdiff_t>(node) * key_tokens_);
  return node;
}

void PrefixCache::hold_pages(Node node, std::span<const std::int32_t> pages) {
  const std::size_t first = static_cast<std::size_t>(node) * groups();
  for (std::size_t g = 0; g < groups(); ++g) {
    pool(g).retain(pages[g]);
    pages_[first + g] = pages[g];
    row_of_page_[pool_of_[g]][static_cast<std::size_t>(pages[g])] = node;
  }
  ++rows_;
}

void PrefixCache::release_pages(Node node) {
  const std::size_t first = static_cast<std::size_t>(node) * groups();
  for (std::size_t g = 0; g < groups(); ++g) {
    const std::int32_t page = std::exchange(pages_[first + g], -1);
    holders_[first + g] = 0;
    row_of_page_[pool_of_[g]][static_cast<std::size_t>(page)] = kNone;
    pool(g).release(page);
  }
  --rows_;
}

PrefixCache::Node PrefixCache::add(Node parent, std::span<const std::int32_t> row, std::span<const std::int32_t> pages,
                                   std::int64_t step) {
  MILLRACE_CHECK(pages.size() == groups(), "{} pages for {} groups", pages.size(), groups());
  MILLRACE_CHECK(at(parent).users > 0, "a row behind row {}, which nobody holds", parent);
  const std::size_t place = lower_bound(at(parent), row);
  if (place < at(parent).children.size()) {
    const Node child = at(parent).children[place];
    if (std::ranges::equal(tokens(child), row)) {
      const bool unused = can_be_evicted(child);
      if (unused) {
        unlist(child);
        release_pages(child);
      }
      if (unused || at(child).hollow) {
        at(child).hollow = false;
        at(child).step = step;
        hold_pages(child, pages);
      } else if (row.size() < static_cast<std::size_t>(key_tokens_)) {
        return kNone;
      }
      ++at(child).users;
      return child;
    }
  }
  const Node node = new_entry(parent, row);
  at(node).step = step;
  at(node).users = 1;
  hold_pages(node, pages);
  Children& children = at(parent).children;
  children.insert(children.begin() + static_cast<std::ptrdiff_t>(place), node);
  return node;
}

PrefixCache::Node PrefixCache::insert(Node parent, std::span<const std::int32_t> row,
                                      std::span<const std::int32_t> pages, std::int64_t step) {
  MILLRACE_CHECK(row.size() == static_cast<std::size_t>(key_tokens_), "a row of {} tokens", row.size());
  return add(parent, row, pages, step);
}

PrefixCache::Node PrefixCache::insert_partial(Node parent, std::span<const std::int32_t> row,
                                              std::span<const std::int32_t> pages, std::int64_t step) {
  MILLRACE_CHECK(together_ == 1 && !row.empty() && row.size() < static_cast<std::size_t>(page_tokens_),
                 "a part of {} tokens", row.size());
  return add(parent, row, pages, step);
}

void PrefixCache::lock(Node node) {
  Entry& entry = at(node);
  if (entry.users++ == 0 && !is_root(node) && !entry.hollow) unlist(node);
}

void PrefixCache::unlock(Node node) {
  Entry& entry = at(node);
  MILLRACE_CHECK(entry.users > 0, "row {} is not locked", node);
  if (--entry.users > 0) return;
  if (!is_root(node) && !entry.hollow) {
    list_newest(node);
  } else if (entry.children.empty()) {
    remove(node);
  }
}

void PrefixCache::drop_partial(Node node) {
  MILLRACE_CHECK(at(node).filled < page_tokens_ && at(node).users == 1, "row {} of {} tokens has {} users", node,
                 at(node).filled, at(node).users);
  at(node).users = 0;
  release_pages(node);
  remove(node);
}

void PrefixCache::hold_page(Node node, std::size_t group) {
  MILLRACE_CHECK(at(node).users > 0 && !at(node).hollow, "a page of row {} is held, which nobody has locked", node);
  ++holders_[static_cast<std::size_t>(node) * groups() + group];
}

void PrefixCache::let_page_go(std::size_t group, std::int32_t page) {
  const Node node = row_of_page_[pool_of_[group]][static_cast<std::size_t>(page)];
  if (node == kNone) return;
  std::int32_t& holders = holders_[static_cast<std::size_t>(node) * groups() + group];
  MILLRACE_CHECK(holders > 0, "nobody holds page {} of row {}", page, node);
  if (--holders == 0 && can_be_evicted(node)) --held_[pool_of_[group]];
}

bool PrefixCache::evict() {
  if (oldest_ == kNone) return false;
  const Node node = next_to_go();
  unlist(node);
  // The next to go is fetched while this one is taken apart: all were used long ago, and none is in the machine's
  // caches.
  if (oldest_ != kNone) {
    __builtin_prefetch(&at(oldest_), 1);
    __builtin_prefetch(pages(oldest_).data());
  }
  release_pages(node);
  if (at(node).children.empty()) {
    remove(node);
  } else {
    MILLRACE_CHECK(window_ > 0, "row {} is older than its children", node);
    at(node).hollow = true;
  }
  return true;
}

void PrefixCache::forget(std::int64_t step) {
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const Entry& entry = entries_[i];
    if (entry.filled == 0 || entry.hollow || entry.step < step) continue;  // a root, a place that is free, or no pages
    const auto node = static_cast<Node>(i);
    if (entry.users == 0) unlist(node);
    release_pages(node);
    at(node).hollow = true;
    if (entry.users == 0 && entry.children.empty()) remove(node);
  }
}

PrefixCache::Node PrefixCache::next_to_go() const {
  constexpr int kLook = 64;
  Node node = oldest_;
  for (int looked = 0; node != kNone && looked < kLook; ++looked, node = at(node).newer) {
    const std::int32_t* holders = holders_.data() + static_cast<std::size_t>(node) * groups();
    const bool frees = std::any_of(holders, holders + groups(), [](std::int32_t count) { return count == 0; });
    if (frees && (at(node).children.empty() || window_ > 0)) return node;
  }
  return oldest_;
}

void PrefixCache::check() const {
  std::int64_t listed = 0, evictable = 0, rows = 0;
  std::vector<std::int64_t> held(pools_.size(), 0);
  for (Node node = oldest_; node != kNone; node = at(node).newer, ++listed) {
    MILLRACE_CHECK(can_be_evicted(node), "row {} is locked, and listed", node);
  }
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const auto node = static_cast<Node>(i);
    const Entry& entry = entries_[i];
    for (std::size_t c = 0; c < entry.children.size(); ++c) {
      const Node child = entry.children[c];
      MILLRACE_CHECK(at(child).parent == node, "row {} is not the parent of {}", node, child);
      MILLRACE_CHECK(window_ > 0 || at(child).users == 0 || entry.users > 0, "row {} is locked, {} is not", child,
                     node);
      MILLRACE_CHECK(c == 0 || std::ranges::lexicographical_compare(tokens(entry.children[c - 1]), tokens(child)),
                     "rows behind {} out of order", node);
    }
    if (entry.filled == 0) continue;
    if (entry.hollow) {
      MILLRACE_CHECK(entry.users > 0 || !entry.children.empty(), "row {} has no purpose", node);
      continue;
    }
    ++rows;
    if (entry.users > 0) continue;
    ++evictable;
    for (std::size_t g = 0; g < groups(); ++g) {
      const std::int32_t references = pool(g).references(pages(node)[g]);
      const std::int32_t holders = holders_[i * groups() + g];
      MILLRACE_CHECK(references == 1 + holders, "row {} can be evicted, and its page has {} references, {} holders",
                     node, references, holders);
      held[pool_of_[g]] += holders > 0 ? 1 : 0;
    }
  }
  MILLRACE_CHECK(held == held_, "{} pages of the first pool are held, {} counted", held.front(), held_.front());
  MILLRACE_CHECK(rows == rows_, "{} rows with pages, {} counted", rows, rows_);
  MILLRACE_CHECK(evictable == evictable_ && listed == evictable_, "{} rows can be evicted, {} listed, {} counted",
                 evictable, listed, evictable_);
}

void PrefixCache::count_references(std::size_t group, std::span<std::int32_t> references) const {
  for (std::size_t node = 0; node < entries_.size(); ++node) {
    const Entry& entry = entries_[node];
    if (entry.filled > 0 && !entry.hollow) {
      ++references[static_cast<std::size_t>(pages(static_cast<Node>(node))[group])];
    }
  }
}

void PrefixCache::remove(Node node) {
  while (true) {
    const Node parent = at(node).parent;
    if (parent == kNone) {
      roots_.erase(at(node).name);
    } else {
      Children& siblings = at(parent).children;
      // Most are only children, whose tokens need not be read.
      const std::size_t place = siblings.size() == 1 ? 0 : lower_bound(at(parent), tokens(node));
      siblings.erase(siblings.begin() + static_cast<std::ptrdiff_t>(place));
    }
    at(node) = {};
    unused_.push_back(node);
    if (parent == kNone) return;
    const Entry& above = at(parent);
    if (above.users > 0 || !above.children.empty() || !(above.hollow || is_root(parent))) return;
    node = parent;
  }
}

void PrefixCache::list_newest(Node node) {
  Entry& entry = at(node);
  entry.older = newest_;
  entry.newer = kNone;
  (newest_ == kNone ? oldest_ : at(newest_).newer) = node;
  newest_ = node;
  ++evictable_;
  count_held(node, 1);
}

void PrefixCache::unlist(Node node) {
  Entry& entry = at(node);
  (entry.older == kNone ? oldest_ : at(entry.older).newer) = entry.newer;
  (entry.newer == kNone ? newest_ : at(entry.newer).older) = entry.older;
  entry.older = entry.newer = kNone;
  --evictable_;
  count_held(node, -1);
}

void PrefixCache::count_held(Node node, std::int64_t one) {
  const std::int32_t* holders = holders_.data() + static_cast<std::size_t>(node) * groups();
  for (std::size_t g = 0; g < groups(); ++g) held_[pool_of_[g]] += holders[g] > 0 ? one : 0;
}

}  // namespace millrace
