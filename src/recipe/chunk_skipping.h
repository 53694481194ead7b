// Which values of what a row sees are not worth reading, as a recipe says it (docs/sparsity.md).
#pragma once

#include <cmath>
#include <cstdint>

namespace millrace {

/// Rows take in what they see in chunks, one after the other. Of a chunk in which no weight comes to `threshold` times
/// the largest so far, a query's weights count as zero, and its values need not be read.
struct ChunkSkipping {
  double threshold = 0.0;         // below 1; 0: nothing is left out
  std::int64_t dense_layers = 0;  // the first, which leave out nothing

  /// By how much the largest score of such a chunk is below the largest so far, at least.
  [[nodiscard]] float margin() const { return static_cast<float>(-std::log(threshold)); }
};

}  // namespace millrace
