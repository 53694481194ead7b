// A token from each of some rows of logits, to the bit what runtime/sampler.h draws: weights in single precision, one
// operation after the other, sums in the order of runtime/row_kernels.h, and whole numbers for the cut at top-p.
//
// A block has a row, which it reads from the second level cache once a pass. What has to go by place (the running sum
// that the draw is a place of) goes by blocks of 256 logits first, then within one.
#include "backend/cuda/kernels/grid.cuh"
#include "backend/cuda/kernels/launch.h"
#include "backend/cuda/kernels/reduce.cuh"

namespace millrace::cuda {

namespace {

constexpr int kThreads = 1024;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kRowBlock = 256;  // logits
constexpr int kMostBlocks = static_cast<int>(kMostDrawn / kRowBlock);
constexpr int kUnitPower = 30;  // top-p counts weights in multiples of 2^-30
constexpr int kMostUnits = 1 << kUnitPower;
constexpr int kBins = 256;
constexpr int kNoLimit = 0x7fffffff;

using Units = unsigned long long;

/// The logits that a draw is among: all of a row, or the most likely ones by place.
struct Row {
  const float* logits;
  int count;
  float largest;

  [[nodiscard]] __device__ int blocks() const { return (count + kRowBlock - 1) / kRowBlock; }
};

/// A place within a block of the row at which the running sum of the blocks before it ends.
struct Start {
  int block;
  int ties;       // of those to come, that count
  Units target;   // of units, what is left; or
  double before;  // of weights, what was passed, and
  double wanted;  // what is to be passed
};

struct Shared {
  float kept_logits[kMostKept];
  int kept_tokens[kMostKept];
  union {
    Units bin_sums[kBins];
    int bin_counts[kBins];
    float weights[kRowBlock];
    int units[kRowBlock];
  };
  union {
    Units unit_sums[kMostBlocks];
    float block_sums[kMostBlocks];
  };
  std::uint16_t ties[kMostBlocks];
  int warp_counts[kThreads / 32];
  int digit, left;
  Units units_left;
  Start start;
};

/// 2^(y + kPower) with y = (logit - largest) * scale; 0 where y is below the floor or no number. y = n + f with n whole
/// and |f| <= 1/2; n goes into the exponent, 2^f is the polynomial of runtime/row_kernels_body.h.
template <int kPower>
__device__ float weight_of(float logit, float largest, const TokenDraw& draw) {
  const float y = __fmul_rn(__fsub_rn(logit, largest), draw.scale);
  const float magic = 12582912.0f + kPower;  // 1.5 * 2^23: the last bits of the sum are y + kPower, rounded to whole
  const float shifted = __fadd_rn(y, magic), f = __fsub_rn(y, __fsub_rn(shifted, magic));
  float p = 0x1.5ac9b2p-10f;
  p = __fadd_rn(__fmul_rn(p, f), 0x1.3cec1ap-7f);
  p = __fadd_rn(__fmul_rn(p, f), 0x1.c6b9e8p-5f);
  p = __fadd_rn(__fmul_rn(p, f), 0x1.ebf9b6p-3f);
  p = __fadd_rn(__fmul_rn(p, f), 0x1.62e426p-1f);
  p = __fadd_rn(__fmul_rn(p, f), 1.0f);
  return y >= draw.floor ? __uint_as_float(__float_as_uint(p) + (__float_as_uint(shifted) << 23)) : 0.0f;
}

__device__ int unit_of(float logit, float largest, const TokenDraw& draw) {
  return __float2int_rn(weight_of<kUnitPower>(logit, largest, draw));
}

__device__ float largest_of(const float* logits, int count) {
  float largest = -INFINITY;
  for (int i = threadIdx.x; i < count; i += kThreads) largest = fmaxf(largest, logits[i]);  // NaN is not looked at
  return block_max<kThreads>(largest);
}

__device__ int place_of_largest(const Row& row) {
  if (row.largest == -INFINITY) return 0;
  int place = kNoLimit;
  for (int i = threadIdx.x; i < row.count && place == kNoLimit; i += kThreads) {
    if (row.logits[i] == row.largest) place = i;
  }
  return block_min<kThreads>(place);
}

/// Counts or sums of bins, those above the lowest: the highest digit at which the sum from the top reaches what is
/// wanted, else 0. What is above it is taken off.
template <typename Count>
__device__ int digit_reached(const Count* bins, Count& wanted) {
  int digit = kBins - 1;
  for (; digit > 0 && bins[digit] < wanted; --digit) wanted -= bins[digit];
  return digit;
}

// ---- Top-k ----

/// In the order of the logits, both zeros alike; 0 where there is none to draw.
__device__ unsigned order_of(float logit) {
  if (!(logit > -INFINITY)) return 0;
  const unsigned bits = __float_as_uint(__fadd_rn(logit, 0.0f));
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

/// How many threads before this one say yes; `total`: how many in all.
__device__ int rank_among(bool yes, Shared& shared, int& total) {
  const unsigned ballot = __ballot_sync(kAllLanes, yes);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  __syncthreads();  // the last counts are read
  if (lane == 0) shared.warp_counts[warp] = __popc(ballot);
  __syncthreads();
  int rank = __popc(ballot & ((1u << lane) - 1u));
  total = 0;
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w < warp) rank += shared.warp_counts[w];
    total += shared.warp_counts[w];
  }
  return rank;
}

/// The k most likely logits, by place, with their tokens: of equal ones the first. Digit by digit, from the top, the
/// k-th of them is found; then they are collected.
__device__ Row keep_top_k(const Row& row, int k, Shared& shared) {
  unsigned limit = 0, known = 0;
  int wanted = k;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) shared.bin_counts[bin] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < row.count; i += kThreads) {
      const unsigned order = order_of(row.logits[i]);
      if (order != 0 && (order & known) == limit) atomicAdd(&shared.bin_counts[order >> shift & 255u], 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      shared.left = wanted;
      shared.digit = digit_reached(shared.bin_counts, shared.left);
    }
    __syncthreads();
    limit |= static_cast<unsigned>(shared.digit) << shift;
    known |= 255u << shift;
    wanted = shared.left;
    __syncthreads();
  }
  int ties = 0, kept = 0;
  for (int first = 0; first < row.count; first += kThreads) {
    const int place = first + static_cast<int>(threadIdx.x);
    const float logit = place < row.count ? row.logits[place] : -INFINITY;
    const unsigned order = order_of(logit);
    if (__syncthreads_or(order != 0 && order >= limit) == 0) continue;
    const bool tie = order != 0 && order == limit;
    int ties_here = 0, kept_here = 0;
    const int tie_rank = ties + rank_among(tie, shared, ties_here);
    const bool keep = tie ? tie_rank < wanted : order > limit;
    const int rank = kept + rank_among(keep, shared, kept_here);
    if (keep) {
      shared.kept_logits[rank] = logit;
      shared.kept_tokens[rank] = place;
    }
    ties += ties_here;
    kept += kept_here;
  }
  __syncthreads();
  return {shared.kept_logits, kept, row.largest};
}

// ---- By weight ----

/// The sum of each block of weights: sixteen partial sums, then folded in half.
__device__ void sum_blocks(const Row& row, const TokenDraw& draw, Shared& shared) {
  const int lane = static_cast<int>(threadIdx.x) % 16, half = static_cast<int>(threadIdx.x) / 16 % 2;
  for (int pair = static_cast<int>(threadIdx.x) / 32 * 2; pair < row.blocks(); pair += kThreads / 16) {
    const int block = pair + half;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kRowBlock; i += 16) {
      const int place = block * kRowBlock + i + lane;
      if (place < row.count) sum = __fadd_rn(sum, weight_of<0>(row.logits[place], row.largest, draw));
    }
#pragma unroll
    for (int width = 8; width > 0; width /= 2) sum = __fadd_rn(sum, __shfl_down_sync(kAllLanes, sum, width, 16));
    if (lane == 0 && block < row.blocks()) shared.block_sums[block] = sum;
  }
  __syncthreads();
}

/// The place at which the running sum of weights passes `uniform` of the whole.
__device__ int draw_by_place(const Row& row, const TokenDraw& draw, Shared& shared) {
  sum_blocks(row, draw, shared);
  if (threadIdx.x == 0) {
    double total = 0.0, before = 0.0;
    for (int block = 0; block < row.blocks(); ++block) {
      total = __dadd_rn(total, static_cast<double>(shared.block_sums[block]));
    }
    const double wanted = __dmul_rn(static_cast<double>(draw.uniform), total);
    int block = 0;
    for (;; ++block) {
      const double reached = __dadd_rn(before, static_cast<double>(shared.block_sums[block]));
      if (reached > wanted) break;
      before = reached;
    }
    shared.start = {.block = block, .ties = 0, .target = 0, .before = before, .wanted = wanted};
  }
  __syncthreads();
  const int begin = shared.start.block * kRowBlock, count = min(kRowBlock, row.count - begin);
  for (int i = threadIdx.x; i < count; i += kThreads) {
    shared.weights[i] = weight_of<0>(row.logits[begin + i], row.largest, draw);
  }
  __syncthreads();
  int last = 0;  // one with a weight, for a target that lies in what the block's sum was rounded up by
  if (threadIdx.x == 0) {
    double reached = shared.start.before;
    for (int i = 0; i < count && reached <= shared.start.wanted; ++i) {
      if (shared.weights[i] > 0.0f) last = i;
      reached = __dadd_rn(reached, static_cast<double>(shared.weights[i]));
    }
  }
  return begin + last;  // of thread 0
}

// ---- Top-p ----

/// What the fewest most likely logits with `top_p` of the weight have: all units above `limit`, and of those that are
/// equal to it the first `ties`.
struct TopP {
  int limit, ties;
};

__device__ TopP find_top_p(const Row& row, const TokenDraw& draw, Shared& shared) {
  Units sum = 0;
  for (int i = threadIdx.x; i < row.count; i += kThreads) {
    sum += static_cast<Units>(unit_of(row.logits[i], row.largest, draw));
  }
  const Units total = block_total<kThreads>(sum);
  auto wanted = static_cast<Units>(ceil(__dmul_rn(static_cast<double>(draw.top_p), static_cast<double>(total))));
  if (wanted == 0) wanted = 1;
  // Digit by digit, from the top: 8, 8, 8 and 7 bits. The lowest bin, which most logits fall into, is not summed up.
  constexpr int kShifts[] = {23, 15, 7, 0};
  int limit = 0, known = 0;
#pragma unroll
  for (int level = 0; level < 4; ++level) {
    const int shift = kShifts[level], digits = level < 3 ? 255 : 127;
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) shared.bin_sums[bin] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < row.count; i += kThreads) {
      const int unit = unit_of(row.logits[i], row.largest, draw), digit = unit >> shift & digits;
      if ((unit & known) == limit && digit != 0) atomicAdd(&shared.bin_sums[digit], static_cast<Units>(unit));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      shared.units_left = wanted;
      shared.digit = digit_reached(shared.bin_sums, shared.units_left);
    }
    __syncthreads();
    limit |= shared.digit << shift;
    known |= digits << shift;
    wanted = shared.units_left;
    __syncthreads();
  }
  const auto floor =
      static_cast<int>(ceil(__dmul_rn(static_cast<double>(draw.min_p), static_cast<double>(kMostUnits))));
  if (floor > limit) return {floor, kNoLimit};
  const auto each = static_cast<Units>(limit);
  return {limit, static_cast<int>((wanted + each - 1) / each)};
}

/// Sums of what is above the limit, and numbers of ties, of each block: a warp has a block.
__device__ void sum_top_p(const Row& row, const TokenDraw& draw, int limit, Shared& shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int block = static_cast<int>(threadIdx.x) / 32; block < row.blocks(); block += kThreads / 32) {
    Units above = 0;
    int ties = 0;
#pragma unroll
    for (int i = 0; i < kRowBlock; i += 32) {
      const int place = block * kRowBlock + i + lane;
      const int unit = place < row.count ? unit_of(row.logits[place], row.largest, draw) : 0;
      above += unit > limit ? static_cast<Units>(unit) : 0;
      ties += __popc(__ballot_sync(kAllLanes, unit == limit));
    }
    above = warp_total(above);
    if (lane == 0) {
      shared.unit_sums[block] = above;
      shared.ties[block] = static_cast<std::uint16_t>(ties);
    }
  }
  __syncthreads();
}

/// The place at which the running sum of the set passes `uniform` of the whole.
__device__ int draw_in_top_p(const Row& row, const TokenDraw& draw, Shared& shared) {
  const TopP set = find_top_p(row, draw, shared);
  sum_top_p(row, draw, set.limit, shared);
  if (threadIdx.x == 0) {
    const auto each = static_cast<Units>(set.limit);
    Units kept = 0;
    int ties = 0;
    for (int block = 0; block < row.blocks(); ++block) {
      kept += shared.unit_sums[block];
      ties += shared.ties[block];
    }
    ties = min(ties, set.ties);
    kept += static_cast<Units>(ties) * each;
    const auto parts = static_cast<Units>(draw.uniform * 0x1p24f);
    Units target = (kept >> 24) * parts + (((kept & 0xffffff) * parts) >> 24);
    int block = 0;
    for (;; ++block) {
      const int here = min(ties, static_cast<int>(shared.ties[block]));
      const Units sum = shared.unit_sums[block] + static_cast<Units>(here) * each;
      if (target < sum) break;
      target -= sum;
      ties -= here;
    }
    shared.start = {.block = block, .ties = ties, .target = target, .before = 0.0, .wanted = 0.0};
  }
  __syncthreads();
  const int begin = shared.start.block * kRowBlock, count = min(kRowBlock, row.count - begin);
  for (int i = threadIdx.x; i < count; i += kThreads) {
    shared.units[i] = unit_of(row.logits[begin + i], row.largest, draw);
  }
  __syncthreads();
  int i = 0;
  if (threadIdx.x == 0) {
    Units target = shared.start.target;
    for (int ties = shared.start.ties;; ++i) {
      const int unit = shared.units[i];
      if (unit < set.limit || (unit == set.limit && ties-- <= 0)) continue;
      if (target < static_cast<Units>(unit)) break;
      target -= static_cast<Units>(unit);
    }
  }
  return begin + i;  // of thread 0
}

__global__ void __launch_bounds__(kThreads) draw_kernel(DrawLaunch args) {
  let_next_start();
  wait_for_inputs();
  __shared__ Shared shared;
  const TokenDraw draw = args.draws[blockIdx.x];
  Row row = {args.logits + draw.row * args.vocab, static_cast<int>(args.vocab), 0.0f};
  row.largest = largest_of(row.logits, row.count);
  if (draw.greedy || isinf(row.largest)) {
    const int place = place_of_largest(row);
    if (threadIdx.x == 0) args.tokens[blockIdx.x] = place;
    return;
  }
  const bool cut = draw.top_k > 0 && draw.top_k < row.count;
  if (cut) row = keep_top_k(row, draw.top_k, shared);
  const int place = draw.top_p < 1.0f ? draw_in_top_p(row, draw, shared) : draw_by_place(row, draw, shared);
  if (threadIdx.x == 0) args.tokens[blockIdx.x] = cut ? shared.kept_tokens[place] : place;
}

}  // namespace

bool draws_on_device(const TokenDraw& draw, std::int64_t vocab) {
  const bool few = draw.top_k <= kMostKept || draw.top_k >= vocab;
  return vocab <= kMostDrawn && (draw.greedy || few);
}

cudaError_t draw_tokens(const DrawLaunch& launch, cudaStream_t stream) {
  return start(draw_kernel, dim3(static_cast<unsigned>(launch.count)), kThreads, 0, stream, launch);
}

}  // namespace millrace::cuda
