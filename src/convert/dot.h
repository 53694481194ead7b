#pragma once

#include <cstdint>

namespace millrace {

/// The sum of products, in several accumulators so that it is fast.
inline float dot(const float* a, const float* b, std::int64_t count) {
  float sums[16] = {};
  std::int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    for (int j = 0; j < 16; ++j) sums[j] += a[i + j] * b[i + j];
  }
  for (; i < count; ++i) sums[0] += a[i] * b[i];
  float sum = 0.0f;
  for (const float part : sums) sum += part;
  return sum;
}

}  // namespace millrace
