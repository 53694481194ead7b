// Whether products with weights that lie input by input are made by kernels that skip, or by the dense ones from
// gathered panels. The bits are the same.
#pragma once

#include <cstdint>
#include <optional>

#include "backend/cpu/kernel_table.h"

namespace millrace {

/// Kernels that skip take kSkipRows rows at a time and read the weights once for each such group of rows; panels are
/// gathered once for all. Rows beyond these are not worth a list of what they keep.
inline constexpr std::int64_t kMostSkipRows = 4 * kSkipRows;

/// `shares`: added up over the groups of rows, the share of the inputs that some row of the group keeps. `codes`: what
/// the weights are, if integer codes.
constexpr bool skipping_pays(std::optional<CodeKind> codes, double shares) {
  // A gathered product takes as long as kernels that skip do for four rows which keep everything, times: f32 3.4, bf16
  // 2.4 (amx), int4 1.9, int8 1.3 (bench_skipped_inputs, 20 rows beside 4 with all inputs kept, weights of 8,192 x
  // 8,192, two threads on Sapphire Rapids, 2026-11-27; beside other work 2.5, 2.1, 1.8, 1.05, of which these are less).
  // So up to four rows it never pays to gather, not even where nothing is left out: what is dear is the layout and not
  // the kernels.
  if (!codes) return shares <= 2.0;
  return shares <= (*codes == CodeKind::int8 ? 1.0 : 1.75);
}

}  // namespace millrace
