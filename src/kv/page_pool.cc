#include "kv/page_pool.h"

#include <numeric>
#include <utility>

#include "core/check.h"

namespace millrace {

PagePool::PagePool(std::int32_t count) : references_(static_cast<std::size_t>(count), 0) {
  free_.resize(static_cast<std::size_t>(count));
  std::iota(free_.rbegin(), free_.rend(), 0);  // page 0 on top
}

std::optional<std::int32_t> PagePool::acquire() {
  if (free_.empty()) return std::nullopt;
  const std::int32_t page = free_.back();
  free_.pop_back();
  references_[static_cast<std::size_t>(page)] = 1;
  return page;
}

void PagePool::retain(std::int32_t page) {
  MILLRACE_CHECK(references_.at(static_cast<std::size_t>(page)) > 0, "page {} is free", page);
  ++references_[static_cast<std::size_t>(page)];
}

void PagePool::release(std::int32_t page) {
  std::int32_t& references = references_.at(static_cast<std::size_t>(page));
  MILLRACE_CHECK(references > 0, "page {} is free already", page);
  if (--references == 0) free_.push_back(page);
}

PageTable::PageTable(PageTable&& other) noexcept
    : pool_(other.pool_),
      page_tokens_(other.page_tokens_),
      first_held_(std::exchange(other.first_held_, 0)),
      dropped_(std::exchange(other.dropped_, 0)),
      entries_(std::exchange(other.entries_, {})) {}

PageTable& PageTable::operator=(PageTable&& other) noexcept {
  if (this == &other) return *this;
  clear();
  pool_ = other.pool_;
  page_tokens_ = other.page_tokens_;
  first_held_ = std::exchange(other.first_held_, 0);
  dropped_ = std::exchange(other.dropped_, 0);
  entries_ = std::exchange(other.entries_, {});
  return *this;
}

PageTable::~PageTable() {
  clear();
}

void PageTable::clear() {
  clear_entries();
  dropped_ = 0;
}

void PageTable::clear_entries() {
  for (std::size_t i = first_held_; i < entries_.size(); ++i) pool_->release(entries_[i]);
  entries_.clear();
  first_held_ = 0;
}

bool PageTable::grow(std::int64_t tokens) {
  const std::int64_t pages = (tokens + page_tokens_ - 1) / page_tokens_ - dropped_;
  if (pages <= static_cast<std::int64_t>(entries_.size())) return true;
  const auto wanted = static_cast<std::size_t>(pages);
  if (wanted - entries_.size() > static_cast<std::size_t>(pool_->free_count())) return false;
  while (entries_.size() < wanted) entries_.push_back(*pool_->acquire());
  return true;
}

void PageTable::append(std::int32_t page) {
  if (page < 0) {
    MILLRACE_CHECK(first_held_ == entries_.size(), "a gap above {} pages", entries_.size() - first_held_);
    ++first_held_;
  } else {
    pool_->retain(page);
  }
  entries_.push_back(page);
}

void PageTable::drop(std::span<const std::int32_t> entries) {
  if (entries.empty()) return;
  MILLRACE_CHECK(first_held_ == 0, "{} pages have left a window", first_held_);
  std::size_t next = 0, kept = 0;
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    if (next < entries.size() && static_cast<std::size_t>(entries[next]) == i) {
      MILLRACE_CHECK(entries_[i] >= 0, "entry {} has no page to drop", i);
      pool_->release(entries_[i]);
      ++next;
    } else {
      entries_[kept++] = entries_[i];
    }
  }
  MILLRACE_CHECK(next == entries.size(), "{} of {} entries are dropped", next, entries.size());
  entries_.resize(kept);
  dropped_ += static_cast<std::int64_t>(next);
}

void PageTable::trim_below(std::int64_t position) {
  const auto end = static_cast<std::size_t>(position / page_tokens_);
  for (; first_held_ < end && first_held_ < entries_.size(); ++first_held_) {
    pool_->release(std::exchange(entries_[first_held_], -1));
  }
}

}  // namespace millrace
