// Which sequences of a batch begin with the same pages, so that attention may read these once for all of them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/forward_batch.h"

namespace millrace {

/// Sets of consecutive sequences of `batch` with equal leading pages, for ForwardBatch::shared: those that together
/// save the most reading, as far as it pays. `windows` has the window of each cache group, 0 for none; groups with a
/// window share nothing. Only neighbours are compared, so whoever orders the batch decides what can be found.
///
/// Pure. The time is that of comparing the equal pages of neighbours, once, and of trying the ends of each set: some
/// microseconds for 64 sequences behind 2,000 tokens.
std::vector<SharedPrefix> find_shared_prefixes(const ForwardBatch& batch, std::int32_t page_tokens,
                                               std::span<const std::int64_t> windows);

}  // namespace millrace
