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
struct PageMasses {
  std::int64_t sequences = 0, pages = 0;  // of the step; entries of a page table at most
  std::vector<std::uint64_t> sums;        // [groups][sequences][pages]

  /// Zeros.
  void reset(std::size_t groups, std::int64_t sequences_of_step, std::int64_t most_pages) {
    sequences = sequences_of_step;
    pages = most_pages;
    sums.assign(groups * static_cast<std::size_t>(sequences * pages), 0);
  }
  [[nodiscard]] std::span<std::uint64_t> of(std::size_t group, std::size_t sequence) {
    const auto count = static_cast<std::size_t>(pages);
    return std::span(sums).subspan((group * static_cast<std::size_t>(sequences) + sequence) * count, count);
  }
  [[nodiscard]] std::span<const std::uint64_t> of(std::size_t group, std::size_t sequence) const {
    const auto count = static_cast<std::size_t>(pages);
    return std::span(sums).subspan((group * static_cast<std::size_t>(sequences) + sequence) * count, count);
  }
};

}  // namespace millrace
