// What part of attention pages have in a step: what a cache that keeps the pages that matter goes by.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace millrace {

/// What a head of a row gives to a page, 0 to 1, in units of 2^-32. What is no number counts as nothing.
inline std::uint64_t mass_units(float part) {
  return part > 0.0f && part <= 2.0f ? static_cast<std::uint64_t>(static_cast<double>(part) * 4294967296.0) : 0;
}

/// Sums over rows that are measured, layers and heads, in mass_units(): whole numbers, so that they do not depend on
/// how rows were cut into steps, nor on the number of threads. A head of a row gives 1 in all.
class PageMasses {
 public:
  /// Zeros. `pages`: of each sequence of the step the longest page table; 0 for those that are not measured.
  void reset(std::size_t groups, std::span<const std::int64_t> pages) {
    begins_.assign(1, 0);
    for (const std::int64_t count : pages) begins_.push_back(begins_.back() + groups * static_cast<std::size_t>(count));
    groups_ = groups;
    sums_.assign(begins_.back(), 0);
  }
  [[nodiscard]] std::size_t sequences() const { return begins_.size() - 1; }
  /// By entries of the sequence's page table.
  [[nodiscard]] std::span<std::uint64_t> of(std::size_t group, std::size_t sequence) {
    return std::span(sums_).subspan(begins_[sequence] + group * pages(sequence), pages(sequence));
  }
  [[nodiscard]] std::span<const std::uint64_t> of(std::size_t group, std::size_t sequence) const {
    return std::span(sums_).subspan(begins_[sequence] + group * pages(sequence), pages(sequence));
  }

 private:
  [[nodiscard]] std::size_t pages(std::size_t sequence) const {
    return (begins_[sequence + 1] - begins_[sequence]) / groups_;
  }

  std::size_t groups_ = 1;
  std::vector<std::size_t> begins_{0};  // [sequences + 1]
  std::vector<std::uint64_t> sums_;     // of each sequence [groups][pages]
};

}  // namespace millrace
