#include "sched/retention.h"

#include <algorithm>

#include "core/check.h"

namespace millrace {

Retention::Retention(const KvRetention& retention, std::span<const std::int64_t> windows, std::int32_t page_tokens,
                     std::int64_t answer_begin, std::int64_t pinned)
    : retention_(retention),
      page_tokens_(page_tokens),
      answer_begin_(answer_begin),
      measured_from_(retention.measures() ? std::max<std::int64_t>(0, answer_begin - retention.queries) : kNever),
      next_(answer_begin > 0 ? answer_begin : page_tokens),
      pinned_(pinned),
      windows_(windows.begin(), windows.end()),
      keepers_(windows.size()) {
  const std::int64_t levels = std::ranges::count(windows, 0);
  std::int64_t level = 0;
  for (std::size_t g = 0; g < windows.size(); ++g) {
    if (windows[g] != 0) continue;
    keepers_[g].emplace(retention.of_level(level++, levels), page_tokens, pinned, static_cast<std::uint32_t>(g));
  }
}

std::int64_t Retention::most_pages(std::size_t group) const {
  return keepers_[group] ? keepers_[group]->most() + 1 : windows_[group] / page_tokens_ + 2;
}

std::int64_t Retention::kept_pages() const {
  std::int64_t most = 0;
  for (const std::optional<PageKeeper>& keeper : keepers_) most = std::max(most, keeper ? keeper->most() : 0);
  return most;
}

void Retention::add(const PageMasses& masses, std::size_t sequence, std::int64_t first, std::int64_t end) {
  if (end <= measured_from_) return;
  MILLRACE_CHECK(end <= next_, "rows up to {} ran before what is kept was decided at {}", end, next_);
  for (std::size_t g = 0; g < keepers_.size(); ++g) {
    if (keepers_[g]) keepers_[g]->add(masses.of(g, sequence), std::max(first, measured_from_), end);
  }
}

std::vector<std::vector<std::int32_t>> Retention::decide() {
  std::vector<std::vector<std::int32_t>> dropped(keepers_.size());
  for (std::size_t g = 0; g < keepers_.size(); ++g) {
    if (keepers_[g]) dropped[g] = keepers_[g]->drop(next_);
  }
  if (const std::int64_t context = retention_.context / page_tokens_ * page_tokens_; next_ >= context) {
    moved_.resize(keepers_.size());
    for (std::size_t g = 0; g < keepers_.size(); ++g) {
      if (keepers_[g]) moved_[g] = keepers_[g]->moved(next_, context);
    }
  }
  next_ = (next_ / page_tokens_ + 1) * page_tokens_;
  return dropped;
}

void Retention::restart() {
  *this = Retention(retention_, std::vector(windows_), page_tokens_, answer_begin_, pinned_);
}

}  // namespace millrace
