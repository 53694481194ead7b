#include "engine/stop_strings.h"

#include <algorithm>
#include <utility>

namespace millrace {

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase(stops_, std::string());
}

std::string StopStrings::push(std::string_view text) {
  if (stopped_) return {};
  pending_ += text;
  std::size_t best_end = std::string::npos;
  std::size_t best_begin = std::string::npos;
  for (const std::string& stop : stops_) {
    const std::size_t begin = pending_.find(stop);
    if (begin == std::string::npos) continue;
    const std::size_t end = begin + stop.size();
    if (best_end == std::string::npos || end < best_end || (end == best_end && begin < best_begin)) {
      best_end = end;
      best_begin = begin;
      found_ = stop;
    }
  }
  if (best_begin != std::string::npos) {
    stopped_ = true;
    std::string before = pending_.substr(0, best_begin);
    pending_.clear();
    return before;
  }
  const std::size_t ready = pending_.size() - held_back();
  std::string out = pending_.substr(0, ready);
  pending_.erase(0, ready);
  return out;
}

std::string StopStrings::finish() {
  if (stopped_) return {};
  return std::exchange(pending_, {});
}

/// Length of the longest end of the pending text that some stop string starts with.
std::size_t StopStrings::held_back() const {
  std::size_t longest = 0;
  const std::string_view pending = pending_;
  for (const std::string& stop : stops_) {
    for (std::size_t n = std::min(stop.size() - 1, pending.size()); n > longest; --n) {
      if (pending.ends_with(std::string_view(stop).substr(0, n))) {
        longest = n;
        break;
      }
    }
  }
  return longest;
}

}  // namespace millrace
