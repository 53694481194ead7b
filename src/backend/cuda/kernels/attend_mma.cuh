// What the kernels share: how chunks of keys and values come into shared memory, and each step of the definition in
// attend_mma.h, once. Steps are intrinsics with one rounding each, so that no compiler can fuse in one kernel what it
// leaves apart in the other.
//
// A chunk is four pages. In shared memory its keys are [head_dim][64 positions] as in a page, rows of 128 bytes whose
// eight units of 16 bytes are permuted by row; its values are [64 positions][head_dim], rows longer by a unit. So eight
// rows of a unit each lie in different banks, which is what ldmatrix reads at a time. Both products want their right
// operand transposed, in the terms of ldmatrix.
#pragma once

#include <algorithm>

#include "backend/cuda/kernels/attend_mma.h"
#include "backend/cuda/kernels/mma.cuh"

namespace millrace::cuda {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.44269504088896340736f;
constexpr int kPageTokens = 16;
constexpr int kPages = kAttendChunk / kPageTokens;
constexpr int kSpanChunks = kAttendSplit / kAttendChunk;
constexpr unsigned kAllLanes = 0xffffffffu;

// ---- Instructions ----

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kTensorCores = false;  // not the ones that these kernels need
#else
constexpr bool kTensorCores = true;
#endif

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

/// Begins to copy 16 bytes into shared memory, or zeros.
__device__ __forceinline__ void copy_16(unsigned target, const std::byte* source, bool zeros) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(zeros ? 0 : 16)
               : "memory");
}

__device__ __forceinline__ void copy_4(unsigned target, const std::byte* source, bool zeros) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(target), "l"(source), "r"(zeros ? 0 : 4)
               : "memory");
}

__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Until all but the newest kGroups groups of this thread's copies have arrived.
template <int kGroups>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

/// Four matrices of 8 x 8 elements of 16 bits; lane i has the address of row i % 8 of matrix i / 8. In r[j] a lane gets
/// elements 2 (lane % 4) and the next of row lane / 4 of matrix j.
__device__ __forceinline__ void load_matrices(unsigned address, unsigned (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

/// The same of the matrices transposed: rows 2 (lane % 4) and the next, column lane / 4.
__device__ __forceinline__ void load_matrices_transposed(unsigned address, unsigned (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

/// c [16, 8] += a [16, 16] b [16, 8]. With g = lane / 4 and i = 2 (lane % 4), a lane holds a at (g, i), (g + 8, i),
/// (g, i + 8), (g + 8, i + 8), b at (i, g), (i + 8, g), each with its neighbour at i + 1, and c at (g, i), (g, i + 1),
/// (g + 8, i), (g + 8, i + 1).
__device__ __forceinline__ void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// a * b + c for pairs of bf16.
__device__ __forceinline__ unsigned fma_bf16(unsigned a, unsigned b, unsigned c) {
  unsigned d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// ---- Codes ----

/// Two of four codes as bf16, exactly: the lower or the upper ones.
template <KvFormat kFormat, bool kUpper>
__device__ __forceinline__ unsigned widen_codes(unsigned codes) {
  if constexpr (kFormat == KvFormat::int8) {
    // In bf16, 0x4300 is 128 with a unit of 1 in the last place, and 0x4380 is 256: the lower seven bits of a code go
    // on top of the one, and the sign, worth -128, makes the other of it.
    const unsigned bytes = __byte_perm(codes, 0, kUpper ? 0x4342 : 0x4140);
    const unsigned magnitude = (bytes & 0x007f007fu) | 0x43004300u, sign = (bytes & 0x00800080u) | 0x43004300u;
    return fma_bf16(sign, 0xbf80bf80u, magnitude);
  } else {
    // The fields of E4M3 move to where bf16 has them; a factor of 2^120 makes up for the biases, for subnormals too.
    // NaN becomes 480: a position that has a NaN has it in its scale as well.
    const unsigned bytes = __byte_perm(codes, 0, kUpper ? 0x3424 : 0x1404);
    const unsigned fields = ((bytes >> 4) & 0x07f007f0u) | (bytes & 0x80008000u);
    return fma_bf16(fields, 0x7b807b80u, 0x80008000u);
  }
}

template <KvFormat kFormat>
__device__ __forceinline__ uint4 widen_eight(unsigned low, unsigned high) {
  return make_uint4(widen_codes<kFormat, false>(low), widen_codes<kFormat, true>(low),
                    widen_codes<kFormat, false>(high), widen_codes<kFormat, true>(high));
}

// ---- A call ----

/// A launch and what the host made of it.
struct Call {
  AttendLaunch launch;
  float factor = 0;          // from scores to logits of base 2
  float tanh_factor = 0;     // from products to 2 log2(e) times the argument of a soft cap's tanh
  std::int32_t reach = 0;    // a row at t sees positions in (t - reach, t]
  std::int32_t spans = 0;    // that a tile may see part of
  std::int32_t queries = 0;  // of a tile and kv head, at most
};

inline std::int32_t group_of(const AttendLaunch& launch) {
  return launch.heads / launch.kv_heads;
}

/// Spans that a tile may see part of.
inline std::int32_t spans_of(const AttendLaunch& launch) {
  if (launch.window == 0) return launch.splits;
  const std::int64_t positions = std::int64_t{launch.window} + launch.tile_rows - 1;
  return static_cast<std::int32_t>(
      std::min<std::int64_t>(launch.splits, (positions + kAttendSplit - 2) / kAttendSplit + 1));
}

inline Call make_call(const AttendLaunch& launch) {
  Call call;
  call.launch = launch;
  call.factor = (launch.softcap != 0.0f ? launch.softcap : launch.scale) * kLog2E;
  call.tanh_factor = launch.softcap != 0.0f ? 2.0f * kLog2E * launch.scale / launch.softcap : 0.0f;
  call.reach = launch.window != 0 ? launch.window : std::numeric_limits<std::int32_t>::max();
  call.spans = spans_of(launch);
  call.queries = launch.tile_rows * group_of(launch);
  return call;
}

// ---- The definition, step by step ----

/// Running softmax of a query: the largest score and the sum of the probabilities.
struct Softmax {
  float largest = -kInfinity, sum = 0.0f;
};

/// Products as scores; rows g and g + 8, columns i and i + 1 (multiply_add).
template <bool kScaled>
__device__ __forceinline__ void finish_scores(const Call& call, float2 key_scales, float (&s)[4]) {
  if constexpr (kScaled) {
    s[0] = __fmul_rn(s[0], key_scales.x);
    s[1] = __fmul_rn(s[1], key_scales.y);
    s[2] = __fmul_rn(s[2], key_scales.x);
    s[3] = __fmul_rn(s[3], key_scales.y);
  }
  if (call.launch.softcap != 0.0f) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // tanh(x) = 1 - 2 / (1 + e^2x)
      const float power = exp2_approx(__fmul_rn(s[i], call.tanh_factor));
      s[i] = __fmaf_rn(-2.0f, reciprocal_approx(__fadd_rn(1.0f, power)), 1.0f);
    }
  }
}

/// Scores of positions `at` and `at` + 1 that a row does not see become -inf; rows g and g + 8 at positions `rows`.
__device__ __forceinline__ void mask_scores(const Call& call, std::int32_t at, const std::int32_t (&rows)[2],
                                            float (&s)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const std::int32_t distance = rows[i / 2] - (at + i % 2);
    if (distance < 0 || distance >= call.reach) s[i] = -kInfinity;
  }
}

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x = __fadd_rn(x, __shfl_xor_sync(kAllLanes, x, 1));
  return __fadd_rn(x, __shfl_xor_sync(kAllLanes, x, 2));
}

/// What stands in for a largest score of -inf, where nothing was seen yet, so that differences are not NaN.
__device__ __forceinline__ float anchor(float largest) {
  return largest == -kInfinity ? 0.0f : largest;
}

/// What a sum under the maximum `before` is multiplied with under `now`: 1 where they are equal, 0 from -inf.
__device__ __forceinline__ float rescale(float before, float now, float factor) {
  return exp2_approx(__fmul_rn(__fsub_rn(before, anchor(now)), factor));
}

/// Scores of 16 positions in a lane, of a row each in [0..1] and [2..3], become probabilities; their sum.
__device__ __forceinline__ float to_probabilities(float (&low)[4], float (&high)[4], int row, float shift,
                                                  float factor) {
  float* const p[4] = {&low[2 * row], &low[2 * row + 1], &high[2 * row], &high[2 * row + 1]};
#pragma unroll
  for (int i = 0; i < 4; ++i) *p[i] = exp2_approx(__fmaf_rn(*p[i], factor, -shift));
  return __fadd_rn(__fadd_rn(*p[0], *p[1]), __fadd_rn(*p[2], *p[3]));
}

/// A lane's sum with those of a chunk's four times 16 positions.
__device__ __forceinline__ float add_sums(float sum, float keep, float a, float b, float c, float d) {
  return __fmaf_rn(sum, keep, __fadd_rn(__fadd_rn(a, b), __fadd_rn(c, d)));
}

struct Fold {
  float keep, take;
};

/// Folds a span into the softmax of those before it.
__device__ __forceinline__ Fold fold_span(Softmax& merged, const Softmax& span, float factor) {
  const float largest = fmaxf(merged.largest, span.largest);
  const Fold fold = {rescale(merged.largest, largest, factor), rescale(span.largest, largest, factor)};
  merged.sum = __fmaf_rn(merged.sum, fold.keep, __fmul_rn(span.sum, fold.take));
  merged.largest = largest;
  return fold;
}

__device__ __forceinline__ float fold_value(float merged, float span, Fold fold) {
  return __fmaf_rn(merged, fold.keep, __fmul_rn(span, fold.take));
}

/// What a query's folded values are multiplied with at the end.
__device__ __forceinline__ float finish(const Call& call, const Softmax& merged, std::int32_t head) {
  if (call.launch.sinks == nullptr) return __fdiv_rn(1.0f, merged.sum);
  const float sink = __fmul_rn(call.launch.sinks[head], kLog2E), top = __fmul_rn(merged.largest, call.factor);
  const float largest = fmaxf(sink, top), keep = exp2_approx(__fsub_rn(top, largest));
  return __fdiv_rn(keep, __fmaf_rn(merged.sum, keep, exp2_approx(__fsub_rn(sink, largest))));
}

/// The addition makes +0 of -0, which is the one trace that masked positions could leave.
__device__ __forceinline__ float finished(float merged, float multiplier) {
  return __fmaf_rn(merged, multiplier, 0.0f);
}

// ---- Tiles and queries ----

/// Positions [first, last].
struct Positions {
  std::int32_t first, last;
};

/// What rows at positions [first, last] see.
__device__ __forceinline__ Positions seen_from(const Call& call, std::int32_t first, std::int32_t last) {
  return {first >= call.reach ? first - call.reach + 1 : 0, last};
}

/// The queries of a tile for one kv head. Query i is head i % group of row i / group.
struct Queries {
  const Call* call;
  AttendTile tile;
  std::int32_t kv_head, group, count;

  __device__ Queries(const Call& the_call, std::int32_t tile_index, std::int32_t the_kv_head)
      : call(&the_call),
        tile(the_call.launch.tiles[tile_index]),
        kv_head(the_kv_head),
        group(the_call.launch.heads / the_call.launch.kv_heads),
        count(tile.rows * group) {}

  [[nodiscard]] __device__ Positions seen() const {
    return seen_from(*call, tile.first_position, tile.first_position + tile.rows - 1);
  }
  /// Of queries that pad a fragment, that of the last.
  [[nodiscard]] __device__ std::int32_t position(std::int32_t query) const {
    return tile.first_position + min(query, count - 1) / group;
  }
  [[nodiscard]] __device__ std::int32_t head(std::int32_t query) const { return kv_head * group + query % group; }
  [[nodiscard]] __device__ const float* q(std::int32_t query) const {
    return call->launch.q + (tile.first_row + query / group) * call->launch.q_stride +
           std::int64_t{head(query)} * call->launch.head_dim;
  }
  [[nodiscard]] __device__ float* out(std::int32_t query) const {
    const std::int64_t row = tile.first_row + query / group;
    return call->launch.out + (row * call->launch.heads + head(query)) * call->launch.head_dim;
  }
};

/// q as the left operand, straight from memory; zeros where there is no query or dimension.
template <int kDim>
__device__ __forceinline__ void load_q(const Queries& queries, std::int32_t first_query, unsigned (&q)[kDim / 16][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::int32_t query = first_query + lane / 4 + 8 * half;
    const float* const row = queries.q(min(query, queries.count - 1));
#pragma unroll
    for (int k = 0; k < kDim / 8; ++k) {
      const int d = 8 * k + 2 * (lane % 4);
      float2 pair = make_float2(0.0f, 0.0f);
      if (query < queries.count && d < queries.call->launch.head_dim) pair = *reinterpret_cast<const float2*>(row + d);
      q[k / 2][half + 2 * (k % 2)] = pack_bf16(pair.x, pair.y);
    }
  }
}

/// Where a span's result for a query is in the partials; `span` counts from the first that the tile sees.
__device__ __forceinline__ std::int64_t partial_slot(const Call& call, std::int32_t tile, std::int32_t kv_head,
                                                     std::int32_t span, std::int32_t query) {
  return ((std::int64_t{tile} * call.launch.kv_heads + kv_head) * call.spans + span) * call.queries + query;
}
__device__ __forceinline__ float* partial_values(const Call& call, std::int64_t slot) {
  return call.launch.partials + slot * call.launch.head_dim;
}
__device__ __forceinline__ float2* partial_softmax(const Call& call, std::int64_t slot) {
  const std::int64_t slots = std::int64_t{call.launch.tile_count} * call.launch.kv_heads * call.spans * call.queries;
  return reinterpret_cast<float2*>(call.launch.partials + slots * call.launch.head_dim) + slot;
}

// ---- Chunks in shared memory ----

/// Offsets of what a block has of keys and values. bf16 is copied to where the products read it, `kStages` chunks; of
/// codes as many are copied as they are, and widened to one chunk of operands.
template <int kDim, KvFormat kFormat, int kStages>
struct ChunkMemory {
  static constexpr bool kCodes = kFormat != KvFormat::bf16;
  static constexpr int kKeyRow = kAttendChunk * 2, kKeyBytes = kDim * kKeyRow;
  static constexpr int kValueRow = kDim * 2 + 16, kValueBytes = kAttendChunk * kValueRow;
  static constexpr int kCodeBytes = kCodes ? kDim * kAttendChunk : 0;
  static constexpr int kScaleBytes = kCodes ? 2 * kAttendChunk * 4 : 0;
  static constexpr int kOperands = kCodes ? 1 : kStages;
  static constexpr int kValuesAt = kOperands * kKeyBytes, kCodesAt = kValuesAt + kOperands * kValueBytes,
                       kScalesAt = kCodesAt + 2 * kStages * kCodeBytes, kBytes = kScalesAt + kStages * kScaleBytes;

  static __device__ __forceinline__ int stage(std::int32_t chunk) { return chunk & (kStages - 1); }
  static __device__ __forceinline__ int keys(std::int32_t chunk) { return kCodes ? 0 : stage(chunk) * kKeyBytes; }
  static __device__ __forceinline__ int values(std::int32_t chunk) {
    return kValuesAt + (kCodes ? 0 : stage(chunk) * kValueBytes);
  }
  static __device__ __forceinline__ int key_codes(std::int32_t chunk) {
    return kCodesAt + 2 * stage(chunk) * kCodeBytes;
  }
  static __device__ __forceinline__ int value_codes(std::int32_t chunk) { return key_codes(chunk) + kCodeBytes; }
  /// Floats: of 64 keys, then of 64 values.
  static __device__ __forceinline__ int scales(std::int32_t chunk) { return kScalesAt + stage(chunk) * kScaleBytes; }
};

/// How the units of a row of keys are permuted: `unit` is at unit ^ key_spread(row). Eight rows of a unit lie apart,
/// and so do four rows of two units that follow each other, which is what copies write at a time.
__device__ __forceinline__ int key_spread(int row) {
  return (row & 3) << 1 | (row >> 2 & 1);
}

/// Brings chunks of one kv head into shared memory. Each warp has a page of every chunk, or a part of one where there
/// are more than four. Pages without a position that the tile sees are not touched, and values of positions that it
/// does not see become zeros, as their probabilities are.
template <int kDim, KvFormat kFormat, int kStages, int kWarps>
class ChunkReader {
  using Memory = ChunkMemory<kDim, kFormat, kStages>;
  static constexpr int kSharers = kWarps / kPages;
  static constexpr int kElementBytes = Memory::kCodes ? 1 : 2;
  static constexpr int kRowUnits = kDim * kElementBytes / 16;  // of a value

 public:
  __device__ ChunkReader(const Queries& queries, Positions seen, std::byte* memory)
      : args_(queries.call->launch),
        table_(args_.page_tables + args_.table_offsets[queries.tile.sequence]),
        seen_(seen),
        memory_(memory),
        address_(shared_address(memory)),
        kv_head_(queries.kv_head),
        page_(threadIdx.x / 32 % kPages),
        share_(threadIdx.x / 32 / kPages),
        lane_(threadIdx.x % 32) {}

  /// Asks for the pages of 32 chunks from `chunk` on; a lane holds that of one.
  __device__ void look_up(std::int32_t chunk) {
    const std::int32_t index = (chunk + lane_) * kPages + page_;
    first_ = chunk;
    ids_ = index >= seen_.first / kPageTokens && index <= seen_.last / kPageTokens ? table_[index] : -1;
  }

  /// With them come the scales of both keys and values.
  __device__ void copy_keys(std::int32_t chunk) {
    if (chunk - first_ >= 32) look_up(chunk);
    const std::int32_t id = page_id(chunk);
    if constexpr (Memory::kCodes) copy_scales(chunk, id);
    if (id < 0) return;
    const std::byte* const source = slab(id, args_.kv.key_offset);
    each_unit<kDim * kElementBytes>([&](int unit) {
      if (unit >= args_.head_dim * kElementBytes) return;
      copy_16(address_ + (Memory::kCodes ? key_codes_at(chunk, unit) : key_at(chunk, unit / 2, unit % 2)),
              source + unit * 16, false);
    });
  }

  /// After copy_keys of the chunk.
  __device__ void copy_values(std::int32_t chunk) {
    const std::byte* const source = slab(max(page_id(chunk), 0), args_.kv.value_offset);
    const std::int32_t first = first_position(chunk);
    each_unit<kPageTokens * kRowUnits>([&](int unit) {
      const int token = unit / kRowUnits, column = unit % kRowUnits;
      if (column * 16 >= args_.head_dim * kElementBytes) return;
      copy_16(address_ + (Memory::kCodes ? value_codes_at(chunk, unit) : value_at(chunk, token, column)),
              source + token * args_.head_dim * kElementBytes + column * 16, !sees(first + token));
    });
  }

  /// Codes that this thread copied, which have arrived, become operands; other threads' do not concern it.
  __device__ void widen_keys(std::int32_t chunk) {
    each_unit<kDim>([&](int unit) {
      if (unit >= args_.head_dim) return;
      const uint4 codes = *reinterpret_cast<const uint4*>(memory_ + key_codes_at(chunk, unit));
      *reinterpret_cast<uint4*>(memory_ + key_at(chunk, unit, 0)) = widen_eight<kFormat>(codes.x, codes.y);
      *reinterpret_cast<uint4*>(memory_ + key_at(chunk, unit, 1)) = widen_eight<kFormat>(codes.z, codes.w);
    });
  }

  __device__ void widen_values(std::int32_t chunk) {
    each_unit<kPageTokens * kRowUnits>([&](int unit) {
      const int token = unit / kRowUnits, column = unit % kRowUnits;
      if (column * 16 >= args_.head_dim) return;
      const uint4 codes = *reinterpret_cast<const uint4*>(memory_ + value_codes_at(chunk, unit));
      std::byte* const target = memory_ + value_at(chunk, token, 2 * column);
      *reinterpret_cast<uint4*>(target) = widen_eight<kFormat>(codes.x, codes.y);
      *reinterpret_cast<uint4*>(target + 16) = widen_eight<kFormat>(codes.z, codes.w);
    });
  }

  /// Keys of dimensions that only the kernel has, in every stage: zeros, for all the block. Like those, q is zero
  /// there.
  __device__ void clear_padding() {
    if (args_.head_dim == kDim) return;
    const int units = (kDim - args_.head_dim) * (Memory::kKeyRow / 16);
    for (int stage = 0; stage < Memory::kOperands; ++stage) {
      auto* const rows = reinterpret_cast<uint4*>(memory_ + Memory::keys(stage) + args_.head_dim * Memory::kKeyRow);
      for (int i = threadIdx.x; i < units; i += kWarps * 32) rows[i] = make_uint4(0, 0, 0, 0);
    }
    __syncthreads();
  }

 private:
  template <int kUnits, typename Each>
  __device__ __forceinline__ void each_unit(Each each) {
    constexpr int kSteps = (kUnits + 32 * kSharers - 1) / (32 * kSharers);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int unit = (i * kSharers + share_) * 32 + lane_;
      if (kUnits % (32 * kSharers) == 0 || unit < kUnits) each(unit);
    }
  }

  __device__ void copy_scales(std::int32_t chunk, std::int32_t id) {
    if (share_ != 0) return;
    const int token = lane_ % kPageTokens, value = lane_ / kPageTokens;
    const std::byte* const scales = args_.kv.pages + static_cast<std::size_t>(max(id, 0)) * args_.kv.page_bytes +
                                    (value != 0 ? args_.kv.value_scale_offset : args_.kv.key_scale_offset);
    copy_4(address_ + Memory::scales(chunk) + (value * kAttendChunk + page_ * kPageTokens + token) * 4,
           scales + (kv_head_ * kPageTokens + token) * 4, !sees(first_position(chunk) + token));
  }

  __device__ std::int32_t page_id(std::int32_t chunk) const {
    return __shfl_sync(kAllLanes, ids_, chunk - first_);
  }
  __device__ std::int32_t first_position(std::int32_t chunk) const {
    return chunk * kAttendChunk + page_ * kPageTokens;
  }
  __device__ bool sees(std::int32_t position) const {
    return position >= seen_.first && position <= seen_.last;
  }
  __device__ const std::byte* slab(std::int32_t id, std::size_t offset) const {
    return args_.kv.pages + static_cast<std::size_t>(id) * args_.kv.page_bytes + offset +
           static_cast<std::size_t>(kv_head_ * args_.head_dim) * (kPageTokens * kElementBytes);
  }
  __device__ int key_at(std::int32_t chunk, int row, int half) const {
    return Memory::keys(chunk) + row * Memory::kKeyRow + (((2 * page_ + half) ^ key_spread(row)) << 4);
  }
  __device__ int value_at(std::int32_t chunk, int token, int unit) const {
    return Memory::values(chunk) + (page_ * kPageTokens + token) * Memory::kValueRow + unit * 16;
  }
  __device__ int key_codes_at(std::int32_t chunk, int unit) const {
    return Memory::key_codes(chunk) + (page_ * kDim + unit) * 16;
  }
  __device__ int value_codes_at(std::int32_t chunk, int unit) const {
    return Memory::value_codes(chunk) + (page_ * kPageTokens * kRowUnits + unit) * 16;
  }

  const AttendLaunch& args_;
  const std::int32_t* table_;
  Positions seen_;
  std::byte* memory_;
  unsigned address_;
  std::int32_t kv_head_;
  int page_, share_, lane_;
  std::int32_t first_ = 0, ids_ = -1;
};

/// Address of a lane's row of the right operand of S: keys [16 dimensions from 0][16 positions of page `page`], as two
/// operands of eight positions; 16 dimensions further are 16 rows further.
__device__ __forceinline__ unsigned key_fragment(unsigned keys, int lane, int page) {
  const int row = lane & 15, unit = 2 * page + (lane >> 4);
  return keys + row * (kAttendChunk * 2) + ((unit ^ key_spread(row)) << 4);
}

}  // namespace

}  // namespace millrace::cuda
