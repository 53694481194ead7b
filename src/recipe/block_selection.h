// Which blocks of the past rows of a prompt read, as a recipe says it (docs/sparsity.md).
#pragma once

#include <cstdint>
#include <limits>

namespace millrace {

enum class BlockChoice : std::uint8_t {
  xattention,  // those that have most of attention, by antidiagonals (Xu et al. 2025, arXiv 2503.16428)
  recent,      // the most recent alone
  random,      // drawn by lot: what knowing nothing is worth
};

/// Rows of a prompt read together, in blocks of as many positions from the sequence's start on; the last one may be
/// shorter.
inline constexpr std::int64_t kQueryBlock = 128;
/// What they read of the past is blocks of as many positions.
inline constexpr std::int64_t kKeyBlock = 64;

/// What is said of the past is said of the positions before a block of rows; what rows of a block see of their own
/// they read always.
struct BlockSelection {
  BlockChoice choice = BlockChoice::xattention;
  double mass = 1.0;  // of attention that a head has in what is read, at least, as far as that is known; xattention
  std::int64_t tokens = std::numeric_limits<std::int64_t>::max();  // positions that are read at most, in whole blocks
  std::int64_t sink_tokens = 64;                                   // of them the first, and
  std::int64_t recent_tokens = 128;                                // the most recent
  std::int64_t dense_layers = 2;                                   // layers from the first on that read everything
};

}  // namespace millrace
