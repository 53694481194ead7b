// What the cache keeps of a sequence once its answer has begun, as a recipe says it (docs/sparsity.md).
#pragma once

#include <cstdint>
#include <limits>

namespace millrace {

enum class KeepChoice : std::uint8_t {
  heavy_hitters,  // pages with most of attention, by the rows that have seen them (Zhang et al. 2023, arXiv 2306.14048)
  relevance,      // those with most of what the latest rows give (Li et al. 2024, arXiv 2404.14469)
  recent,         // the most recent alone (StreamingLLM: Xiao et al. 2023, arXiv 2309.17453)
  random,         // drawn by lot: what knowing nothing is worth
};

/// Rows of a prompt read, and keep, everything. Where the answer begins, and whenever a page of it is full, pages that
/// are not kept are given back, and no later row sees them.
struct KvRetention {
  KeepChoice choice = KeepChoice::heavy_hitters;
  std::int64_t tokens = 0;          // positions that are kept, in whole pages
  std::int64_t sink_tokens = 16;    // of them the first, and
  std::int64_t recent_tokens = 64;  // the most recent
  std::int64_t queries = 32;        // the last rows of a prompt whose attention counts
  bool pin_system = true;           // what stands before a chat's first message beside the system's is kept for ever
  std::int64_t levels = 0;          // parts of the layers that keep pages of their own; 0: every layer does
  // What the last level keeps, no more than the first, which keeps `tokens`; those between them fall evenly (Cai et al.
  // 2024, "PyramidKV", arXiv 2406.02069). 0: as many.
  std::int64_t last_tokens = 0;
  // Of the model that runs with it, no part of a recipe: pages further away count as if they stood at its far end.
  std::int64_t context = std::numeric_limits<std::int64_t>::max();

  /// What one of the levels keeps.
  [[nodiscard]] KvRetention of_level(std::int64_t level, std::int64_t count) const {
    KvRetention own = *this;
    if (last_tokens > 0 && count > 1) own.tokens -= (tokens - last_tokens) * level / (count - 1);
    own.last_tokens = 0;
    return own;
  }
  [[nodiscard]] bool measures() const { return choice == KeepChoice::heavy_hitters || choice == KeepChoice::relevance; }
};

}  // namespace millrace
