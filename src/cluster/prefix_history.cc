#include "cluster/prefix_history.h"

#include <algorithm>

namespace millrace {

void PrefixHistory::use(std::span<const std::uint64_t> pages, std::size_t most, std::vector<std::uint64_t>& added,
                        std::vector<std::uint64_t>& removed) {
  added.clear();
  removed.clear();
  // From the back, so that a beginning is never older than what stands behind it.
  for (std::size_t i = std::min(pages.size(), most); i-- > 0;) {
    const auto known = places_.find(pages[i]);
    if (known != places_.end()) {
      order_.splice(order_.begin(), order_, known->second);
      continue;
    }
    order_.push_front(pages[i]);
    places_[pages[i]] = order_.begin();
    added.push_back(pages[i]);
  }
  while (places_.size() > most) {
    removed.push_back(order_.back());
    places_.erase(order_.back());
    order_.pop_back();
  }
}

}  // namespace millrace
