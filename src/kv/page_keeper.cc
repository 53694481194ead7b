#include "kv/page_keeper.h"

#include <algorithm>

#include "core/check.h"
#include "core/philox.h"

namespace millrace {

namespace {

std::int64_t pages_for(std::int64_t tokens, std::int32_t page_tokens) {
  return (tokens + page_tokens - 1) / page_tokens;
}

}  // namespace

std::int64_t PageKeeper::most() const {
  const std::int64_t sinks = pages_for(retention_.sink_tokens, page_tokens_), pinned = pages_for(pinned_, page_tokens_);
  return retention_.tokens / page_tokens_ + std::max<std::int64_t>(0, pinned - sinks);
}

void PageKeeper::reach(std::int64_t end) {
  for (; next_ * page_tokens_ < end; ++next_) pages_.push_back({.number = next_});
}

void PageKeeper::add(std::span<const std::uint64_t> masses, std::int64_t first, std::int64_t end) {
  reach(end);
  MILLRACE_CHECK(masses.size() >= pages_.size(), "masses of {} pages, and there are {}", masses.size(), pages_.size());
  for (std::size_t p = 0; p < pages_.size(); ++p) {
    pages_[p].mass += masses[p];
    pages_[p].rows += std::max<std::int64_t>(0, end - std::max(first, pages_[p].number * page_tokens_));
  }
}

double PageKeeper::worth(const Page& page) const {
  switch (retention_.choice) {
    case KeepChoice::heavy_hitters:
    case KeepChoice::relevance:
      return page.rows == 0 ? 0.0 : static_cast<double>(page.mass) / static_cast<double>(page.rows);
    case KeepChoice::recent:
      return static_cast<double>(page.number);
    case KeepChoice::random:
      return philox4x32_10(
          {static_cast<std::uint32_t>(page.number), static_cast<std::uint32_t>(page.number >> 32), lot_, 0x6b656570},
          {0, 0})[0];
  }
  return 0.0;
}

std::vector<std::int32_t> PageKeeper::drop(std::int64_t end) {
  reach(end);
  std::vector<std::int32_t> dropped;
  const auto count = std::ssize(pages_);
  const std::int64_t excess = count - most();
  if (excess > 0) {
    const std::int64_t always =
        std::max(pages_for(retention_.sink_tokens, page_tokens_), pages_for(pinned_, page_tokens_));
    const std::int64_t recent = std::max<std::int64_t>(0, end - retention_.recent_tokens) / page_tokens_;
    std::vector<std::int32_t> order;
    for (std::int32_t p = 0; p < count; ++p) {
      const std::int64_t number = pages_[static_cast<std::size_t>(p)].number;
      if (number >= always && number < recent) order.push_back(p);
    }
    MILLRACE_CHECK(std::ssize(order) >= excess, "{} pages are kept anyway, of {}", count - std::ssize(order), most());
    // The worst first, of equal ones the later.
    std::ranges::sort(order, [this](std::int32_t a, std::int32_t b) {
      const double left = worth(pages_[static_cast<std::size_t>(a)]),
                   right = worth(pages_[static_cast<std::size_t>(b)]);
      return left != right ? left < right : a > b;
    });
    dropped.assign(order.begin(), order.begin() + excess);
    std::ranges::sort(dropped);
    std::size_t next = 0, kept = 0;
    for (std::size_t p = 0; p < pages_.size(); ++p) {
      if (next < dropped.size() && static_cast<std::size_t>(dropped[next]) == p) {
        ++next;
      } else {
        pages_[kept++] = pages_[p];
      }
    }
    pages_.resize(kept);
  }
  if (retention_.choice == KeepChoice::relevance) {
    for (Page& page : pages_) page.mass = 0, page.rows = 0;
  }
  return dropped;
}

std::vector<MovedPages> PageKeeper::moved(std::int64_t position, std::int64_t context) const {
  const std::int64_t own = position / page_tokens_, farthest = own - (context / page_tokens_ - 1);
  std::vector<MovedPages> moved;
  std::int64_t entry = 0;
  // Numbers ascend by at least one from page to page, and so the distance to move by never grows.
  for (; entry < std::ssize(pages_); ++entry) {
    const std::int64_t by = farthest + entry - pages_[static_cast<std::size_t>(entry)].number;
    if (by <= 0) break;
    if (moved.empty() || moved.back().by != by * page_tokens_) {
      moved.push_back({static_cast<std::int32_t>(entry), by * page_tokens_});
    }
  }
  if (moved.empty()) return {};
  MILLRACE_CHECK(entry <= context / page_tokens_ - 1, "{} pages are kept of a context of {}", entry, context);
  moved.push_back({static_cast<std::int32_t>(entry), 0});
  return moved;
}

}  // namespace millrace
