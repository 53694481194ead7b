// Attention on tensor cores: queries and probabilities rounded to bf16, keys and values as they are stored (bf16, or
// codes of int8 and E4M3, which bf16 holds exactly), sums in f32.
//
// Three kernels give the same bits. The split kernel takes 16 queries to a block and one span of positions, for decode:
// blocks are many even for few rows. The whole kernels take 64 or 128 queries to a block and all positions, for
// prefill (after Dao, "FlashAttention-2", 2023): attend_mma.cu has the one for every device, attend_wgmma.cu another. A
// query is a row and one of the heads that share a kv head; those lie side by side in a tile, so that keys and values
// are read once for all of them.
//
// What both compute for a query, in this order and rounding at each step, whatever else is in its tile:
//
//   Positions are cut into spans of kAttendSplit and these into chunks of kAttendChunk, absolutely.
//   Within a span, chunks in ascending order, from m = -inf, l = 0, o = 0:
//     s = q k, mma m16n8k16 over head_dim in ascending steps of 16 from 0; s *= key scale; with a soft cap
//         s = tanh(s * scale / cap). `factor` takes s to the base 2 logit: cap * log2(e), or scale * log2(e).
//     n = max(m, s of visible positions); keep = 2^((m - n) factor); p = 2^fma(s, factor, -n factor), 0 where masked
//     l = fma(l, keep, sum of p), for each of the four lanes that share a row in a fragment on its own: a lane holds
//         positions 8 i + 2 c and 8 i + 2 c + 1 and adds them by sixteens, then the sixteens pairwise
//     o = o keep + bf16(p * value scale) v, mma over the chunk's positions in ascending steps of 16
//   The lanes of l are added, (0 + 1) + (2 + 3), and the spans are folded in ascending order, from m = -inf, l = 0,
//   o = 0: n = max(m, m'), keep = 2^((m - n) factor), take = 2^((m' - n) factor), x = fma(x, keep, x' take) for l and
//   o. A sink is then one more logit of the softmax. out = o * (keep / l).
//
// With finite keys and values, a chunk or a span that the query does not see changes nothing: s is -inf throughout,
// keep is exactly 1 (or m is -inf still, and everything 0), p is 0. So it does not matter which of them a tile visits
// for the sake of its other rows.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <limits>

#include "backend/cuda/kernels/launch.h"

namespace millrace::cuda {

inline constexpr std::int32_t kAttendChunk = 64;

/// Queries of a block of the split kernel, and of the whole kernel.
inline constexpr std::int32_t kSplitQueries = 16;
constexpr std::int32_t whole_queries(std::int32_t head_dim) {
  return head_dim <= 128 ? 128 : 64;
}

/// Whether the kernels take such a layer on a device of this compute capability (90 for 9.0): pages of 16 tokens in
/// bf16, int8 or E4M3 at multiples of 16 bytes, head_dim a multiple of 16 up to 256, scale above 0, and as much shared
/// memory as they need. Reads shapes only: pointers, tiles and counts may be absent.
bool attend_mma_supports(int capability, const AttendLaunch& launch);

/// Size of `partials` for the split kernel: for each tile, kv head, span and query of a tile, o [head_dim] of the span;
/// behind all of those, for each again, m and l. Depends on shapes, tile_count, tile_rows, splits and window.
std::size_t attend_partial_floats(const AttendLaunch& launch);

/// Whether attend_wgmma() has a kernel for such tiles: keys and values in bf16, head_dim 64 or 128, and compute
/// capability 9.0.
bool attend_wgmma_supports(const AttendLaunch& launch);
/// The whole kernel by the instructions of 9.0.
cudaError_t attend_wgmma(const AttendLaunch& launch, cudaStream_t stream);

/// The split kernel where the launch has partials, else a whole kernel. The grid depends on the same fields as
/// attend_partial_floats and on nothing in device memory. Each tile must have 1 to tile_rows rows.
cudaError_t attend_mma(const AttendLaunch& launch, cudaStream_t stream);

}  // namespace millrace::cuda
