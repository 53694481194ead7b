// PrefixHistory: what a gateway believes a node's prefix cache to hold: the prompts that it has sent there, as far as
// they fit. Pure.
#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

namespace millrace {

class PrefixHistory {
 public:
  /// The node has computed a prompt of these pages (PrefixIndex::pages_of). `added` and `removed`: what has changed.
  /// `most`: pages that the node has memory for; of more, those go that were not used for longest, of a prompt the
  /// last.
  void use(std::span<const std::uint64_t> pages, std::size_t most, std::vector<std::uint64_t>& added,
           std::vector<std::uint64_t>& removed);
  void clear() {
    order_.clear();
    places_.clear();
  }

  [[nodiscard]] std::size_t size() const { return places_.size(); }

 private:
  std::list<std::uint64_t> order_;  // the latest first
  std::unordered_map<std::uint64_t, std::list<std::uint64_t>::iterator> places_;
};

}  // namespace millrace
