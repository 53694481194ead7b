#include "sched/kv_allocator.h"

#include <algorithm>
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

}  // namespace

KvAllocator::KvAllocator(const KvLimits& limits)
    : limits_(limits),
      window_(farthest(limits.windows)),
      pools_(limits.windows.size(), PagePool(limits.pages)),
      swap_(limits.windows.size(), PagePool(limits.swap_pages)),
      cache_(pools_, limits.page_tokens, window_, limits.rows_together) {}

SequenceKv KvAllocator::make() {
  SequenceKv kv;
  kv.tables.reserve(pools_.size());
  for (PagePool& pool : pools_) kv.tables.emplace_back(pool, limits_.page_tokens);
  return kv;
}

std::int64_t KvAllocator::rows_for(std::int64_t tokens) const {
  return (tokens + limits_.page_tokens - 1) / limits_.page_tokens;
}

std::int64_t KvAllocator::available() const {
  std::int64_t free = limits_.pages;
  for (std::size_t g = 0; g < pools_.size(); ++g) free = std::min(free, pools_[g].free_count() + cache_.evictable(g));
  return free - reserved_;
}

std::int64_t KvAllocator::used_rows() const {
  return limits_.pages - available() - reserved_;
}

std::int64_t KvAllocator::cached_rows() const {
  std::int64_t cached = limits_.pages;
  for (std::size_t g = 0; g < pools_.size(); ++g) cached = std::min(cached, cache_.evictable(g));
  return cached;
}

bool KvAllocator::make_room(std::int64_t rows) {
  for (const PagePool& pool : pools_) {
    while (pool.free_count() < rows) {
      if (!cache_.evict()) return false;
    }
  }
  return true;
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
  const std::int64_t needed = rows_for(candidate.positions) - static_cast<std::int64_t>(match.rows.size());
  admission.wanted = needed + taken + candidate.spare;
  if (match.partial != PrefixCache::kNone &&
      admission.wanted + (cache_.can_be_evicted(match.partial) ? 1 : 0) > available()) {
    match.partial = PrefixCache::kNone;  // computed again: else a sequence that needs every page could never have them
  }
  if (admission.wait || admission.wanted > available()) {
    if (kv.root != PrefixCache::kNone) cache_.unlock(std::exchange(kv.root, PrefixCache::kNone));
    return admission;
  }
  for (const PrefixCache::Node node : match.rows) cache_.lock(node);
  kv.nodes = std::move(match.rows);
  // What stands before a row without pages is out of every window.
  std::size_t first = kv.nodes.size();
  while (first > 0 && cache_.pages(kv.nodes[first - 1]).front() >= 0) --first;
  for (std::size_t g = 0; g < pools_.size(); ++g) {
    for (std::size_t row = 0; row < kv.nodes.size(); ++row) {
      kv.tables[g].append(row < first ? -1 : cache_.pages(kv.nodes[row])[g]);
    }
  }
  kv.rows = static_cast<std::int64_t>(kv.nodes.size());
  kv.reserved = needed;
  reserved_ += needed;
  admission.admitted = true;
  admission.cached_tokens = static_cast<std::int64_t>(kv.nodes.size()) * limits_.page_tokens;
  if (match.partial == PrefixCache::kNone) return admission;
  cache_.lock(match.partial);
  const bool grown = grow(kv, admission.cached_tokens + 1);
  MILLRACE_CHECK(grown, "no page for a copy, though {} were available", available());
  for (std::size_t g = 0; g < pools_.size(); ++g) {
    copies.push_back({static_cast<std::int32_t>(g), cache_.pages(match.partial)[g], kv.tables[g].entries().back()});
  }
  cache_.unlock(match.partial);
  admission.cached_tokens += match.partial_tokens;
  return admission;
}

bool KvAllocator::grow(SequenceKv& kv, std::int64_t tokens) {
  const std::int64_t more = rows_for(tokens) - kv.rows;
  if (more <= 0) return true;
  const std::int64_t promised = std::min(more, kv.reserved);
  if (more - promised > available()) return false;
  const bool room = make_room(more);
  MILLRACE_CHECK(room, "{} rows were available, and {} can't be had", available(), more);
  for (PageTable& table : kv.tables) {
    const bool grown = table.grow(tokens);
    MILLRACE_CHECK(grown, "the pool has too few pages for {} tokens", tokens);
  }
  kv.rows += more;
  kv.reserved -= promised;
  reserved_ -= promised;
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
    if (kv.reserved < limits_.rows_together) break;
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
      for (std::size_t g = 0; g < pools_.size(); ++g) kv.tables[g].append(cache_.pages(node)[g]);
      ++kv.rows;
      --kv.reserved;
      --reserved_;
    }
    at += together;
  }
  return at - computed;
}

void KvAllocator::publish(SequenceKv& kv, std::span<const std::int32_t> tokens, std::int64_t filled, bool partial,
                          std::int64_t step) {
  if (kv.root == PrefixCache::kNone || kv.apart) return;
  const std::int64_t page = limits_.page_tokens;
  std::vector<std::int32_t> pages(pools_.size());
  const auto pages_of = [&](std::size_t row) {
    for (std::size_t g = 0; g < pools_.size(); ++g) pages[g] = kv.tables[g].entries()[row];
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
  for (std::size_t g = 0; g < pools_.size(); ++g) {
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
    for (std::size_t g = 0; g < pools_.size(); ++g) {
      const std::int32_t page = kv.tables[g].entries()[row];
      if (page >= 0 && page == cache_.pages(node)[g]) cache_.hold_page(node, g);
    }
  };
  for (std::size_t row = kv.first_locked; row < kv.nodes.size(); ++row) hold(kv.nodes[row], row);
  if (kv.partial != PrefixCache::kNone) hold(kv.partial, kv.nodes.size());
  unlock_rows(kv);
}

void KvAllocator::promise(SequenceKv& kv, std::int64_t most) {
  std::int64_t held = 0;
  for (const PageTable& table : kv.tables) held = std::max(held, count_pages(table.entries()));
  const std::int64_t more = std::min(most - held - kv.reserved, available());
  if (more <= 0) return;
  kv.reserved += more;
  reserved_ += more;
}

std::int64_t KvAllocator::drop(SequenceKv& kv, std::span<const std::vector<std::int32_t>> entries, std::int64_t most) {
  leave_cache(kv);
  std::int64_t freed = 0;
  for (std::size_t g = 0; g < pools_.size(); ++g) {
    const std::int64_t before = pools_[g].free_count() + cache_.evictable(g);
    for (const std::int32_t entry : entries[g]) {
      cache_.let_page_go(g, kv.tables[g].entries()[static_cast<std::size_t>(entry)]);
    }
    kv.tables[g].drop(entries[g]);
    freed += pools_[g].free_count() + cache_.evictable(g) - before;
  }
  promise(kv, most);
  return freed;
}

bool KvAllocator::swap_out(SequenceKv& kv, std::vector<PageCopy>& copies) {
  MILLRACE_CHECK(kv.apart && !kv.is_swapped(), "a sequence that has dropped nothing is swapped, or one twice");
  for (std::size_t g = 0; g < pools_.size(); ++g) {
    if (count_pages(kv.tables[g].entries()) > swap_[g].free_count()) return false;
  }
  kv.swapped.resize(pools_.size());
  for (std::size_t g = 0; g < pools_.size(); ++g) {
    for (const std::int32_t page : kv.tables[g].entries()) {
      kv.swapped[g].push_back(page < 0 ? -1 : *swap_[g].acquire());
      if (page >= 0) copies.push_back({static_cast<std::int32_t>(g), page, limits_.pages + kv.swapped[g].back()});
    }
  }
  release_pages(kv);
  return true;
}

bool KvAllocator::swap_in(SequenceKv& kv, std::int64_t most, std::int64_t spare, std::vector<PageCopy>& copies) {
  std::int64_t rows = 0;
  for (const std::vector<std::int32_t>& group : kv.swapped) rows = std::max(rows, count_pages(group));
  if (std::max(rows, most) + spare > available()) return false;
  const bool room = make_room(rows);
  MILLRACE_CHECK(room, "{} rows were available, and {} can't be had", available(), rows);
  for (std::size_t g = 0; g < pools_.size(); ++g) {
    for (const std::int32_t from : kv.swapped[g]) {
      if (from < 0) {
        kv.tables[g].append(-1);
        continue;
      }
      kv.tables[g].take(*pools_[g].acquire());
      copies.push_back({static_cast<std::int32_t>(g), limits_.pages + from, kv.tables[g].entries().back()});
    }
  }
  release_swapped(kv);
  promise(kv, most);
  return true;
}

void KvAllocator::release_swapped(SequenceKv& kv) {
  for (std::size_t g = 0; g < kv.swapped.size(); ++g) {
    for (const std::int32_t page : kv.swapped[g]) {
      if (page >= 0) swap_[g].release(page);
    }
  }
  kv.swapped.clear();
}

void KvAllocator::release_pages(SequenceKv& kv) {
  for (std::size_t g = 0; g < pools_.size(); ++g) {
    for (const std::int32_t page : kv.tables[g].entries()) {
      if (kv.apart && page >= 0) cache_.let_page_go(g, page);
    }
    kv.tables[g].clear_entries();
  }
  reserved_ -= std::exchange(kv.reserved, 0);
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
  std::int64_t reserved = 0;
  for (const SequenceKv* kv : live) reserved += kv->reserved;
  MILLRACE_CHECK(reserved == reserved_, "{} rows promised, {} counted", reserved, reserved_);
  MILLRACE_CHECK(available() >= 0, "{} rows available", available());
  cache_.check();
  for (std::size_t g = 0; g < pools_.size(); ++g) {
    std::vector<std::int32_t> references(static_cast<std::size_t>(limits_.pages), 0);
    for (const SequenceKv* kv : live) {
      const auto entries = static_cast<std::int64_t>(kv->tables[g].entries().size());
      MILLRACE_CHECK(kv->is_swapped() ? entries == 0 : entries == kv->rows - kv->tables[g].dropped(),
                     "{} entries, {} rows, {} dropped", entries, kv->rows, kv->tables[g].dropped());
      for (const std::int32_t page : kv->tables[g].entries()) {
        if (page >= 0) ++references[static_cast<std::size_t>(page)];
      }
    }
    cache_.count_references(g, references);
    std::int32_t free = 0;
    for (std::int32_t page = 0; page < limits_.pages; ++page) {
      const std::int32_t counted = references[static_cast<std::size_t>(page)];
      MILLRACE_CHECK(counted == pools_[g].references(page), "page {} has {} references, {} counted", page,
                     pools_[g].references(page), counted);
      free += counted == 0 ? 1 : 0;
    }
    MILLRACE_CHECK(free == pools_[g].free_count(), "{} pages free, {} counted", pools_[g].free_count(), free);
    std::int64_t swapped = 0;
    for (const SequenceKv* kv : live) swapped += kv->is_swapped() ? count_pages(kv->swapped[g]) : 0;
    MILLRACE_CHECK(swapped + swap_[g].free_count() == limits_.swap_pages, "{} swap pages free, {} taken of {}",
                   swap_[g].free_count(), swapped, limits_.swap_pages);
  }
}

}  // namespace millrace
