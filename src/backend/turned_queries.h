// Queries for pages that have moved (SequenceRows::moved), asked by every backend that keeps some pages.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/backend.h"
#include "core/check.h"

namespace millrace {

/// `out` [head_dim] = `query` [head_dim] as if its row stood `by` positions earlier.
inline void turn_query(const ForwardBatch& batch, std::size_t sequence, const QueryTurns& turns, std::int64_t by,
                       const float* query, std::int32_t head_dim, float* out) {
  const auto found = std::ranges::lower_bound(batch.turns, by);
  MILLRACE_CHECK(found != batch.turns.end() && *found == by, "no turn by {} positions", by);
  const auto half = static_cast<std::size_t>(turns.rotary_dim / 2);
  const std::size_t before = turns.by_sequence ? sequence * batch.turns.size() : 0;
  const auto row = turns.rows[before + static_cast<std::size_t>(found - batch.turns.begin())];
  const std::size_t first = static_cast<std::size_t>(row) * half;
  const float *cos = turns.cos.data() + first, *sin = turns.sin.data() + first;
  for (std::size_t i = 0; i < half; ++i) {
    const float a = query[i], b = query[half + i];
    out[i] = a * cos[i] + b * sin[i];
    out[half + i] = b * cos[i] - a * sin[i];
  }
  for (auto i = static_cast<std::size_t>(turns.rotary_dim); i < static_cast<std::size_t>(head_dim); ++i) {
    out[i] = query[i];
  }
}

}  // namespace millrace
