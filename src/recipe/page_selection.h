// Which pages of the past a row of an answer reads, as a recipe says it (docs/sparsity.md).
#pragma once

#include <cstdint>

namespace millrace {

enum class PageChoice : std::uint8_t {
  quest,   // those whose keys could give the largest scores (Tang et al. 2024, arXiv 2406.10774)
  recent,  // the most recent alone
  random,  // drawn by lot: what knowing nothing is worth
};

struct PageSelection {
  PageChoice choice = PageChoice::quest;
  // Positions that a row reads at most, in whole pages.
  std::int64_t tokens = std::int64_t{1} << 40;
  // For quest: each query reads the pages with the largest bounds, until these come to this part of what the bounds of
  // all that it may leave out give; 1: as many as `tokens` says.
  double mass = 1.0;
  std::int64_t sink_tokens = 16;    // of them the first, and
  std::int64_t recent_tokens = 64;  // the most recent, itself among them
  std::int64_t dense_layers = 2;    // layers from the first on that read everything
};

}  // namespace millrace
