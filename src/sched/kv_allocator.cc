#include "sched/kv_allocator.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "core/check.h"

namespace millrace {

namespace {

std::int64_t count_pages(std::span<const std::int32_t> entries) {
  return std::ranges::count_if(entries, [](std::int32_t page) { return page >= 0; });
}

std::int64_t farthest(const std::vector<std::int64_t>& windows) {
  const bool all = std::ranges::find(windows, 0) != windows.end();
  return all ? 0 : *std::ranges::max_element(windows);
}

/// With a pool for each group where nothing is said of them.
KvLimits with_pools(KvLimits limits) {
  if (limits.pools.empty()) {
    limits.pools.resize(limits.windows.size());
    std::iota(limits.pools.begin(), limits.pools.end(), 0);
  }
  MILLRACE_CHECK(limits.pools.size() == limits.windows.size(), "{} groups with windows, {} with pools",
                 limits.windows.size(), limits.pools.size());
  return limits;
}

std::vector<std::int32_t> count_groups(const std::vector<std::int32_t>& pools) {
  std::vector<std::int32_t> groups;
  for (const std::int32_t pool : pools) {
    groups.resize(std::max(groups.size(), static_cast<std::size_t>(pool) + 1), 0);
    ++groups[static_cast<std::size_t>(pool)];
  }
  return groups;
}

std::vector<PagePool> make_pools(std::span<const std::int32_t> groups_in, std::int32_t rows) {
  std::vector<PagePool> pools;
  for (const std::int32_t groups : groups_in) pools.emplace_back(rows * groups);
  return pools;
}

}  // namespace

KvAllocator::KvAllocator(const KvLimits& limits)
    : limits_(with_pools(limits)),
      window_(farthest(limits.windows)),
      groups_in_(count_groups(limits_.pools)),
      pools_(make_pools(groups_in_, limits.pages)),
      swap_(make_pools(groups_in_, limits.swap_pages)),
      cache_(pools_, limits.page_tokens, window_, limits.rows_together, limits_.pools),
      reserved_(pools_.size(), 0) {}

SequenceKv KvAllocator::make() {
  SequenceKv kv;
  kv.tables.reserve(groups());
  for (std::size_t g = 0; g < groups(); ++g) kv.tables.emplace_back(pools_[pool_of(g)], limits_.page_tokens);
  kv.reserved.assign(pools_.size(), 0);
  return kv;
}

std::int64_t KvAllocator::rows_for(std::int64_t tokens) const {
  return (tokens + limits_.page_tokens - 1) / limits_.page_tokens;
}

std::int64_t KvAllocator::sum(std::span<const std::int64_t> pages, std::size_t pool) const {
  std::int64_t all = 0;
  for (std::size_t g = 0; g < pages.size(); ++g) all += pool_of(g) == pool ? pages[g] : 0;
  return all;
}

std::int64_t KvAllocator::held(const SequenceKv& kv, std::size_t pool) const {
  std::int64_t all = 0;
  for (std::size_t g = 0; g < groups(); ++g) all += pool_of(g) == pool ? count_pages(kv.tables[g].entries()) : 0;
  return all;
}

bool KvAllocator::can_hold(std::int64_t positions, std::span<const std::int64_t> most) const {
  for (std::size_t p = 0; p < pools_.size(); ++p) {
    if (std::max(rows_for(positions) * groups_in_[p], sum(most, p)) > pools_[p].count()) return false;
  }
  return true;
}

std::int64_t KvAllocator::available() const {
  std::int64_t rows = limits_.pages;
  for (std::size_t p = 0; p < pools_.size(); ++p) rows = std::min(rows, available(p) / groups_in_[p]);
  return rows;
}

std::int64_t KvAllocator::used_rows() const {
  std::int64_t rows = limits_.pages;
  for (std::size_t p = 0; p < pools_.size(); ++p) rows = std::min(rows, unused(p) / groups_in_[p]);
  return limits_.pages - rows;
}

std::int64_t KvAllocator::cached_rows() const {
  std::int64_t rows = limits_.pages;
  for (std::size_t p = 0; p < pools_.size(); ++p) rows = std::min(rows, cache_.evictable(p) / groups_in_[p]);
  return rows;
}

void KvAllocator::make_room(std::size_t pool, std::int64_t pages) {
  while (pools_[pool].free_count() < pages) {
    const bool evicted = cache_.evict();
    MILLRACE_CHECK(evicted, "{} pages of pool {} were available, and {} can't be had", available(pool), pool, pages);
  }
}

void KvAllocator::reserve(SequenceKv& kv, std::size_t pool, std::int64_t pages) {
  kv.reserved[pool] += pages;
  reserved_[pool] += pages;
}

KvAllocator::Admission KvAllocator::admit(SequenceKv& kv, const Candidate& candidate, std::vector<PageCopy>& copies) {
  MILLRACE_CHECK(kv.nodes.empty() && kv.root == PrefixCache::kNone, "admitted twice");
  Admission admission;
  PrefixCache::Match match;
  if (limits_.prefix_cache) {
    kv.root = cache_.lock_root(candidate.name);
    if (candidate.share) {
      match = cache_.match(kv.root, candidate.tokens.first(candidate.tokens.size() - 1), candidate.step);
      if (!limits_.share_parts) {
        match.partial = PrefixCache::kNone;
        match.partial_tokens = match.coming_tokens = 0;
      }
    }
  }
  admission.wait = candidate.may_wait && match.coming_tokens > match.partial_tokens + 1;
  // Locking takes rows out of what can be evicted; the copied row must survive until its copy has a page.
  std::int64_t taken = 0;
  for (const PrefixCache::Node node : match.rows) taken += cache_.can_be_evicted(node) ? 1 : 0;
  const auto found = static_cast<std::int64_t>(match.rows.size());
  const auto needed = [&](std::size_t pool) {
    return std::max(rows_for(candidate.positions) * groups_in_[pool], sum(candidate.most, pool)) -
           found * groups_in_[pool];
  };
  const auto there_are = [&](std::int64_t more_rows) {
    for (std::size_t p = 0; p < pools_.size(); ++p) {
      if (needed(p) + (taken + candidate.spare + more_rows) * groups_in_[p] > available(p)) return false;
    }
    return true;
  };
  for (std::size_t p = 0; p < pools_.size(); ++p) {
    admission.wanted = std::max(admission.wanted, needed(p) / groups_in_[p] + taken + candidate.spare);
  }
  if (match.partial != PrefixCache::kNone && !there_are(cache_.can_be_evicted(match.partial) ? 1 : 0)) {
    match.partial = PrefixCache::kNone;  // computed again: else a sequence that needs every page could never have them
  }
  if (admission.wait || !there_are(0)) {
    if (kv.root != PrefixCache::kNone) cache_.unlock(std::exchange(kv.root, PrefixCache::kNone));
    return admission;
  }
  for (const PrefixCache::Node node : match.rows) cache_.lock(node);
  kv.nodes = std::move(match.rows);
  // What stands before a row without pages is out of every window.
  std::size_t first = kv.nodes.size();
  while (first > 0 && cache_.pages(kv.nodes[first - 1]).front() >= 0) --first;
  for (std::size_t g = 0; g < groups(); ++g) {
    for (std::size_t row = 0; row < kv.nodes.size(); ++row) {
      kv.tables[g].append(row < first ? -1 : cache_.pages(kv.nodes[row])[g]);
    }
  }
  kv.rows = static_cast<std::int64_t>(kv.nodes.size());
  for (std::size_t p = 0; p < pools_.size(); ++p) reserve(kv, p, needed(p));
  admission.admitted = true;
  admission.cached_tokens = static_cast<std::int64_t>(kv.nodes.size()) * limits_.page_tokens;
  if (match.partial == PrefixCache::kNone) return admission;
  cache_.lock(match.partial);
  const bool grown = grow(kv, admission.cached_tokens + 1);
  MILLRACE_CHECK(grown, "no page for a copy, though {} were available", available());
  for (std::size_t g = 0; g < groups(); ++g) {
    copies.push_back({static_cast<std::int32_t>(g), cache_.pages(match.partial)[g], kv.tables[g].entries().back()});
  }
  cache_.unlock(match.partial);
  admission.cached_tokens += match.partial_tokens;
  return admission;
}

bool KvAllocator::grow(SequenceKv& kv, std::int64_t tokens) {
  const std::int64_t more = rows_for(tokens) - kv.rows;
  if (more <= 0) return true;
  for (std::size_t p = 0; p < pools_.size(); ++p) {
    if (more * groups_in_[p] - kv.reserved[p] > available(p)) return false;
  }
  for (std::size_t p = 0; p < pools_.size(); ++p) make_room(p, more * groups_in_[p]);
  for (PageTable& table : kv.tables) {
    const bool grown = table.grow(tokens);
    MILLRACE_CHECK(grown, "the pool has too few pages for {} tokens", tokens);
  }
  kv.rows += more;
  for (std::size_t p = 0; p < pools_.size(); ++p) reserve(kv, p, -std::min(more * groups_in_[p], kv.reserved[p]));
  return true;
}

std::span<const std::int32_t> KvAllocator::key(std::span<const std::int32_t> tokens, std::int64_t at) const {
  const std::int64_t together = std::int64_t{limits_.page_tokens} * limits_.rows_together;
  return tokens.subspan(static_cast<std::size_t>(at / together * together), static_cast<std::size_t>(together));
}

std::int64_t KvAllocator::catch_up(SequenceKv& kv, std::span<const std::int32_t> tokens, std::int64_t computed) {
  if (kv.root == PrefixCache::kNone || kv.apart) return 0;
  const std::int64_t page = limits_.page_tokens, together = limits_.rows_together * page;
  std::int64_t at = computed;
  std::vector<PrefixCache::Node> set;
  while (at % together == 0 && at + together < static_cast<std::int64_t>(tokens.size()) &&
         static_cast<std::int64_t>(kv.nodes.size()) * page == at && kv.rows * page == at) {
    // A row that could be evicted counts as available: it is only taken in place of one that was promised.
    for (std::size_t p = 0; p < pools_.size(); ++p) {
      if (kv.reserved[p] < std::int64_t{limits_.rows_together} * groups_in_[p]) return at - computed;
    }
    set.clear();
    PrefixCache::Node parent = kv.nodes.empty() ? kv.root : kv.nodes.back();
    for (std::int64_t row = at; row < at + together && parent != PrefixCache::kNone; row += page) {
      parent = cache_.find(parent, key(tokens, row));
      if (parent != PrefixCache::kNone) set.push_back(parent);
    }
    if (static_cast<std::int64_t>(set.size()) < limits_.rows_together) break;
    for (const PrefixCache::Node node : set) {
      cache_.lock(node);
      kv.nodes.push_back(node);
      for (std::size_t g = 0; g < groups(); ++g) kv.tables[g].append(cache_.pages(node)[g]);
      ++kv.rows;
      for (std::size_t p = 0; p < pools_.size(); ++p) reserve(kv, p, -groups_in_[p]);
    }
    at += together;
  }
  return at - computed;
}

void KvAllocator::publish(SequenceKv& kv, std::span<const std::int32_t> tokens, std::int64_t filled, bool partial,
                          std::int64_t step) {
  if (kv.root == PrefixCache::kNone || kv.apart) return;
  const std::int64_t page = limits_.page_tokens;
  std::vector<std::int32_t> pages(groups());
  const auto pages_of = [&](std::size_t row) {
    for (std::size_t g = 0; g < groups(); ++g) pages[g] = kv.tables[g].entries()[row];
  };
  while (static_cast<std::int64_t>(kv.nodes.size() + 1) * page <= filled) {
    if (kv.partial != PrefixCache::kNone) cache_.drop_partial(std::exchange(kv.partial, PrefixCache::kNone));
    const std::size_t row = kv.nodes.size();
    pages_of(row);
    const PrefixCache::Node parent = row == 0 ? kv.root : kv.nodes.back();
    kv.nodes.push_back(cache_.insert(parent, key(tokens, static_cast<std::int64_t>(row) * page), pages, step));
  }
  const std::size_t row = kv.nodes.size();
  const std::int64_t rest = filled - static_cast<std::int64_t>(row) * page;
  if (!partial || rest == 0) return;
  if (kv.partial != PrefixCache::kNone) cache_.drop_partial(std::exchange(kv.partial, PrefixCache::kNone));
  pages_of(row);
  kv.partial = cache_.insert_partial(
      row == 0 ? kv.root : kv.nodes.back(),
      tokens.subspan(row * static_cast<std::size_t>(page), static_cast<std::size_t>(rest)), pages, step);
}

void KvAllocator::trim(SequenceKv& kv, std::int64_t position) {
  for (std::size_t g = 0; g < groups(); ++g) {
    const std::int64_t window = limits_.windows[g];
    if (window == 0 || position < window) continue;
    const std::span<const std::int32_t> entries = kv.tables[g].entries();
    auto end = static_cast<std::size_t>((position - window + 1) / limits_.page_tokens);
    while (kv.apart && end > 0 && entries[end - 1] >= 0) cache_.let_page_go(g, entries[--end]);
    kv.tables[g].trim_below(position - window + 1);
  }
  if (window_ == 0 || position < window_) return;
  const auto passed = static_cast<std::size_t>((position - window_ + 1) / limits_.page_tokens);
  // The last row stays: what the sequence publishes next stands behind it.
  for (; kv.first_locked < passed && kv.first_locked + 1 < kv.nodes.size(); ++kv.first_locked) {
    cache_.unlock(kv.nodes[kv.first_locked]);
  }
}

void KvAllocator::leave_cache(SequenceKv& kv) {
  if (std::exchange(kv.apart, true)) return;
  const auto hold = [&](PrefixCache::Node node, std::size_t row) {
    // Of what others had computed already, the sequence has pages of its own.
    for (std::size_t g = 0; g < groups(); ++g) {
      const std::int32_t page = kv.tables[g].entries()[row];
      if (page >= 0 && page == cache_.pages(node)[g]) cache_.hold_page(node, g);
    }
  };
  for (std::size_t row = kv.first_locked; row < kv.nodes.size(); ++row) hold(kv.nodes[row], row);
  if (kv.partial != PrefixCache::kNone) hold(kv.partial, kv.nodes.size());
  unlock_rows(kv);
}

void KvAllocator::promise(SequenceKv& kv, std::span<const std::int64_t> most) {
  for (std::size_t p = 0; p < pools_.size(); ++p) {
    reserve(kv, p, std::max<std::int64_t>(0, std::min(sum(most, p) - held(kv, p) - kv.reserved[p], available(p))));
  }
}

std::int64_t KvAllocator::drop(SequenceKv& kv, std::span<const std::vector<std::int32_t>> entries,
                               std::span<const std::int64_t> most) {
  leave_cache(kv);
  std::int64_t freed = 0;
  for (std::size_t p = 0; p < pools_.size(); ++p) freed -= unused(p);
  for (std::size_t g = 0; g < groups(); ++g) {
    for (const std::int32_t entry : entries[g]) {
      cache_.let_page_go(g, kv.tables[g].entries()[static_cast<std::size_t>(entry)]);
    }
    kv.tables[g].drop(entries[g]);
  }
  for (std::size_t p = 0; p < pools_.size(); ++p) freed += unused(p);
  promise(kv, most);
  return freed;
}

bool KvAllocator::swap_out(SequenceKv& kv, std::vector<PageCopy>& copies) {
  MILLRACE_CHECK(kv.apart && !kv.is_swapped(), "a sequence that has dropped nothing is swapped, or one twice");
  for (std::size_t p = 0; p < pools_.size(); ++p) {
    if (held(kv, p) > swap_[p].free_count()) return false;
  }
  kv.swapped.resize(groups());
  for (std::size_t g = 0; g < groups(); ++g) {
    const std::size_t pool = pool_of(g);
    for (const std::int32_t page : kv.tables[g].entries()) {
      kv.swapped[g].push_back(page < 0 ? -1 : *swap_[pool].acquire());
      if (page < 0) continue;
      copies.push_back({static_cast<std::int32_t>(g), page, pools_[pool].count() + kv.swapped[g].back()});
    }
  }
  release_pages(kv);
  return true;
}

KvAllocator::Admission KvAllocator::swap_in(SequenceKv& kv, std::span<const std::int64_t> most, std::int64_t spare,
                                            std::vector<PageCopy>& copies) {
  Admission admission{.admitted = true};
  std::vector<std::int64_t> swapped;
  for (const std::vector<std::int32_t>& group : kv.swapped) swapped.push_back(count_pages(group));
  for (std::size_t p = 0; p < pools_.size(); ++p) {
    const std::int64_t pages = std::max(sum(swapped, p), sum(most, p));
    admission.wanted = std::max(admission.wanted, pages / groups_in_[p] + spare);
    if (pages + spare * groups_in_[p] > available(p)) admission.admitted = false;
  }
  if (!admission.admitted) return admission;
  for (std::size_t p = 0; p < pools_.size(); ++p) make_room(p, sum(swapped, p));
  for (std::size_t g = 0; g < groups(); ++g) {
    const std::size_t pool = pool_of(g);
    for (const std::int32_t from : kv.swapped[g]) {
      if (from < 0) {
        kv.tables[g].append(-1);
        continue;
      }
      kv.tables[g].take(*pools_[pool].acquire());
      copies.push_back({static_cast<std::int32_t>(g), pools_[pool].count() + from, kv.tables[g].entries().back()});
    }
  }
  release_swapped(kv);
  promise(kv, most);
  return admission;
}

void KvAllocator::release_swapped(SequenceKv& kv) {
  for (std::size_t g = 0; g < kv.swapped.size(); ++g) {
    for (const std::int32_t page : kv.swapped[g]) {
      if (page >= 0) swap_[pool_of(g)].release(page);
    }
  }
  kv.swapped.clear();
}

void KvAllocator::release_pages(SequenceKv& kv) {
  for (std::size_t g = 0; g < groups(); ++g) {
    for (const std::int32_t page : kv.tables[g].entries()) {
      if (kv.apart && page >= 0) cache_.let_page_go(g, page);
    }
    kv.tables[g].clear_entries();
  }
  for (std::size_t p = 0; p < pools_.size(); ++p) reserve(kv, p, -kv.reserved[p]);
}

void KvAllocator::unlock_rows(SequenceKv& kv) {
  if (kv.partial != PrefixCache::kNone) cache_.unlock(std::exchange(kv.partial, PrefixCache::kNone));
  while (kv.nodes.size() > kv.first_locked) {  // from the leaf up, so that leaves are the first to be evicted
    cache_.unlock(kv.nodes.back());
    kv.nodes.pop_back();
  }
  kv.nodes.clear();
  kv.first_locked = 0;
}

void KvAllocator::release(SequenceKv& kv) {
  release_swapped(kv);
  release_pages(kv);
  for (PageTable& table : kv.tables) table.clear();
  kv.rows = 0;
  unlock_rows(kv);
  kv.apart = false;
  if (kv.root != PrefixCache::kNone) cache_.unlock(std::exchange(kv.root, PrefixCache::kNone));
}

void KvAllocator::check(std::span<const SequenceKv* const> live) const {
  cache_.check();
  for (std::size_t p = 0; p < pools_.size(); ++p) {
    std::int64_t reserved = 0;
    for (const SequenceKv* kv : live) reserved += kv->reserved[p];
    MILLRACE_CHECK(reserved == reserved_[p], "{} pages of pool {} promised, {} counted", reserved, p, reserved_[p]);
    MILLRACE_CHECK(available(p) >= 0, "{} pages of pool {} available", available(p), p);
    check_pool(live, p);
  }
}

void KvAllocator::check_pool(std::span<const SequenceKv* const> live, std::size_t pool) const {
  std::vector<std::int32_t> references(static_cast<std::size_t>(pools_[pool].count()), 0);
  std::int64_t swapped = 0;
  for (std::size_t g = 0; g < groups(); ++g) {
    if (pool_of(g) != pool) continue;
    for (const SequenceKv* kv : live) {
      const auto entries = static_cast<std::int64_t>(kv->tables[g].entries().size());
      MILLRACE_CHECK(kv->is_swapped() ? entries == 0 : entries == kv->rows - kv->tables[g].dropped(),
                     "{} entries, {} rows, {} dropped", entries, kv->rows, kv->tables[g].dropped());
      for (const std::int32_t page : kv->tables[g].entries()) {
        if (page >= 0) ++references[static_cast<std::size_t>(page)];
      }
      swapped += kv->is_swapped() ? count_pages(kv->swapped[g]) : 0;
    }
    cache_.count_references(g, references);
  }
  std::int32_t free = 0;
  for (std::int32_t page = 0; page < pools_[pool].count(); ++page) {
    const std::int32_t counted = references[static_cast<std::size_t>(page)];
    MILLRACE_CHECK(counted == pools_[pool].references(page), "page {} has {} references, {} counted", page,
                   pools_[pool].references(page), counted);
    free += counted == 0 ? 1 : 0;
  }
  MILLRACE_CHECK(free == pools_[pool].free_count(), "{} pages free, {} counted", pools_[pool].free_count(), free);
  MILLRACE_CHECK(swapped + swap_[pool].free_count() == swap_[pool].count(), "{} swap pages free, {} taken of {}",
                 swap_[pool].free_count(), swapped, swap_[pool].count());
}

}  // namespace millrace
