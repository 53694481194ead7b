// Attention of prompts that is approximate where it is far (HyperAttention), as a recipe says it (docs/sparsity.md).
#pragma once

#include <cstdint>

namespace millrace {

/// Sizes are multiples of this, where they say so: chunks of attention then are whole ones.
inline constexpr std::int64_t kHyperUnit = 64;

/// Rows of a prompt belong to chunks of positions, from the sequence's start on. A row reads the sequence's first
/// positions, the most recent before its chunk, and those of its chunk that it sees; for the positions between the
/// first and the recent ones it reads a block of those whose keys hash as its query does, and a sample of the others
/// that stands for them all (Han et al. 2023, arXiv 2310.05869). So what a row reads is a function of its own position
/// and query, and of the tokens before it.
struct HyperAttention {
  std::int64_t block = 256;          // positions of a block, in the order of their hashes
  std::int64_t samples = 256;        // of all positions; those of the row's block do not count
  std::int64_t chunk = 1024;         // a multiple of kHyperUnit
  std::int64_t min_tokens = 4096;    // rows of chunks that begin before this position read everything
  std::int64_t sink_tokens = 64;     // the first positions, a multiple of kHyperUnit
  std::int64_t recent_tokens = 128;  // the most recent before a chunk, a multiple of kHyperUnit
  std::int64_t dense_layers = 2;     // layers from the first on that read everything
  std::uint64_t seed = 0;            // of projections and samples
};

}  // namespace millrace
