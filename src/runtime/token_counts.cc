#include "runtime/token_counts.h"

#include <algorithm>

namespace millrace {

std::size_t TokenCounts::slot_of(std::int32_t token) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t slot = (static_cast<std::uint32_t>(token) * 0x9E3779B1u) & mask;  // an odd factor: distinct ids spread
  while (slots_[slot] != 0 && entries_[slots_[slot] - 1].token != token) slot = (slot + 1) & mask;
  return slot;
}

void TokenCounts::grow() {
  slots_.assign(std::max<std::size_t>(64, slots_.size() * 2), 0);
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    slots_[slot_of(entries_[i].token)] = static_cast<std::uint32_t>(i + 1);
  }
}

TokenCounts::Entry& TokenCounts::entry(std::int32_t token) {
  if (entries_.size() * 2 >= slots_.size()) grow();  // at most half full, so that runs of full slots stay short
  const std::size_t slot = slot_of(token);
  if (slots_[slot] == 0) {
    entries_.push_back({.token = token});
    slots_[slot] = static_cast<std::uint32_t>(entries_.size());
  }
  return entries_[slots_[slot] - 1];
}

}  // namespace millrace
