// Passes over a row of logits, as vectors: maxima, weights and their sums, searches. What the sampler is built from.
//
// The weight of a logit is 2^y with y = (logit - largest) · scale. All of it is arithmetic of our own (no C library),
// in float32, without fused operations and in an order that does not depend on the width of the vectors: the same bits
// on every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace millrace {

inline constexpr std::size_t kRowBlock = 256;       // logits; the maxima of blocks tell which ones a search may skip
inline constexpr float kSmallestExponent = -41.0f;  // below, a weight is zero
inline constexpr int kUnitPower = 30;
inline constexpr std::int32_t kUnitsOfOne = 1 << kUnitPower;  // so that a sum of two is still 32 bits, unsigned

/// From logits to weights. A logit that is NaN, or whose y is below `floor`, weighs 0.
struct WeightScale {
  float largest = 0.0f;             // finite, and no logit is above it
  float scale = 0.0f;               // log2(e) / temperature
  float floor = kSmallestExponent;  // kSmallestExponent to 0
};

/// Sum and number of the units that reach a limit, for two limits.
struct UnitSums {
  std::uint64_t sums[2] = {0, 0};
  std::int64_t counts[2] = {0, 0};
};

struct FoundUnits {
  std::size_t count = 0;
  std::uint64_t sum_above = 0;
};

/// The passes compiled for one instruction set. A block is kRowBlock logits or, at the end of a row, fewer; blocks of
/// units are always whole.
struct RowKernels {
  const char* name;
  /// The largest logit of a block; NaN is ignored, -inf if there is nothing else.
  float (*block_maximum)(const float* block, std::size_t count);
  /// The places in a block of the logits that are `limit` or more, ascending; returns how many.
  std::size_t (*find_at_least)(const float* block, std::size_t count, float limit, std::int32_t* places);
  /// The weight of one logit, from 0 to 1. Its relative error as a power of two is at most 2e-7, which does not count
  /// the rounding of y (1.2e-7 of y's magnitude).
  float (*weight)(float logit, const WeightScale& weights);
  /// The sum of a block's weights: 16 partial sums (logit i in number i mod 16), then folded in half four times.
  float (*sum_weights)(const float* block, std::size_t count, const WeightScale& weights);
  /// units[i] = round(2^30 · weight), of a block; zeros up to kRowBlock. Whole numbers add up exactly in any order.
  /// Returns their sum.
  std::uint64_t (*fill_units)(const float* block, std::size_t count, const WeightScale& weights, std::int32_t* units);
  /// Over several blocks; the limits are at least 1.
  UnitSums (*sum_units)(const std::int32_t* units, std::size_t blocks, std::int32_t limit, std::int32_t other_limit);
  /// The places in a block of the units that are at least `low` (>= 1) and below `high` (>= low), ascending, and the
  /// sum of those above.
  FoundUnits (*find_units)(const std::int32_t* block, std::int32_t low, std::int32_t high, std::int32_t* places);
};

/// The tables that run on this processor, the fastest last. The first needs nothing but C++.
std::span<const RowKernels* const> row_kernels();

#if defined(__x86_64__)
extern const RowKernels kAvx2RowKernels;  // for row_kernels() only
#endif

}  // namespace millrace
