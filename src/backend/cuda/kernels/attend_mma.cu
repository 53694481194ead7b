// The kernels of attend_mma.h: split, merge, whole. What they share is in attend_mma.cuh.
#include <algorithm>

#include "backend/cuda/kernels/attend_mma.cuh"
#include "backend/cuda/kernels/attend_whole.cuh"
#include "backend/cuda/kernels/grid.cuh"

namespace millrace::cuda {

namespace {

// ---- Split: 16 queries, one span ----

/// Stages whose copies are under way together: about as many bytes for every head_dim.
template <int kDim>
constexpr int kSplitStages = kDim <= 64    ? 4
                             : kDim <= 128 ? 2
                                           : 1;
constexpr int kSplitWarps = 4;

template <int kDim, KvFormat kFormat>
struct SplitMemory : ChunkMemory<kDim, kFormat, kSplitStages<kDim>> {
  using Chunks = ChunkMemory<kDim, kFormat, kSplitStages<kDim>>;
  static constexpr int kProbabilityRow = kAttendChunk * 2 + 16;                 // bytes
  static constexpr int kLargestAt = Chunks::kBytes;                             // floats [query][warp]
  static constexpr int kSumsAt = kLargestAt + kSplitQueries * kSplitWarps * 4;  // floats [query][lane % 4][warp]
  static constexpr int kProbabilitiesAt = kSumsAt + kSplitQueries * 4 * kSplitWarps * 4;  // bf16 [query][position]
  static constexpr int kBytes = kProbabilitiesAt + kSplitQueries * kProbabilityRow;
};

/// Four warps. Of a chunk, each has the products with the keys of one page, and the products of all probabilities with
/// a quarter of the dimensions of the values; maxima, sums and probabilities go through shared memory.
template <int kDim, KvFormat kFormat>
__device__ __forceinline__ void split_block(const Call& call, std::byte* memory) {
  constexpr int kStages = kSplitStages<kDim>;
  constexpr int kColumns = kDim / 8 / kSplitWarps;  // of eight dimensions
  using Memory = SplitMemory<kDim, kFormat>;
  const AttendLaunch& args = call.launch;
  const Queries queries(call, blockIdx.x, blockIdx.y % args.kv_heads);
  const std::int32_t first_query = blockIdx.y / args.kv_heads * kSplitQueries;
  const Positions seen = queries.seen();
  const std::int32_t span_begin = (seen.first / kAttendSplit + blockIdx.z) * kAttendSplit;
  if (first_query >= queries.count || span_begin > seen.last) return;
  const std::int32_t begin = max(span_begin, seen.first) / kAttendChunk;
  const std::int32_t end = min(span_begin + kAttendSplit - 1, seen.last) / kAttendChunk + 1;

  ChunkReader<kDim, kFormat, kStages, kSplitWarps> reader(queries, seen, memory);
  reader.look_up(begin);
  reader.clear_padding();
#pragma unroll
  for (int i = 0; i < kStages; ++i) {
    if (begin + i < end) reader.copy_keys(begin + i);
    commit_copies();
    if (i == kStages - 1) break;
    if (begin + i < end) reader.copy_values(begin + i);
    commit_copies();
  }

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = lane / 4, column = 2 * (lane % 4);
  const unsigned address = shared_address(memory);
  auto* const shared_largest = reinterpret_cast<float*>(memory + Memory::kLargestAt);
  auto* const shared_sums = reinterpret_cast<float*>(memory + Memory::kSumsAt);
  unsigned q[kDim / 16][4];
  load_q<kDim>(queries, first_query, q);
  const std::int32_t positions[2] = {queries.position(first_query + row), queries.position(first_query + row + 8)};
  Softmax softmax[2];
  float o[kColumns][4] = {};

  for (std::int32_t chunk = begin; chunk < end; ++chunk) {
    wait_copies<2 * kStages - 2>();
    if constexpr (Memory::kCodes) reader.widen_keys(chunk);
    __syncwarp();
    float s[2][4] = {};
    const unsigned keys = key_fragment(address + Memory::keys(chunk), lane, warp);
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      unsigned b[4];
      load_matrices_transposed(keys + k * 16 * Memory::kKeyRow, b);
      multiply_add(s[0], q[k], b[0], b[1]);
      multiply_add(s[1], q[k], b[2], b[3]);
    }
    float2 value_scales[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int at = warp * kPageTokens + 8 * i + column;
      float2 key_scales = make_float2(1.0f, 1.0f);
      if constexpr (Memory::kCodes) {
        const auto* const scales = reinterpret_cast<const float*>(memory + Memory::scales(chunk)) + at;
        key_scales = *reinterpret_cast<const float2*>(scales);
        value_scales[i] = *reinterpret_cast<const float2*>(scales + kAttendChunk);
      }
      finish_scores<Memory::kCodes>(call, key_scales, s[i]);
      mask_scores(call, chunk * kAttendChunk + at, positions, s[i]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float largest =
          quad_max(fmaxf(fmaxf(s[0][2 * half], s[0][2 * half + 1]), fmaxf(s[1][2 * half], s[1][2 * half + 1])));
      if (lane % 4 == 0) shared_largest[(row + 8 * half) * kSplitWarps + warp] = largest;
    }
    __syncthreads();  // maxima are there; nobody needs the last chunk's values or this one's keys any more
    if (chunk + kStages - 1 < end) reader.copy_values(chunk + kStages - 1);
    commit_copies();
    if (chunk + kStages < end) reader.copy_keys(chunk + kStages);
    commit_copies();

    float keep[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float4 all = reinterpret_cast<const float4*>(shared_largest)[row + 8 * half];
      const float largest = fmaxf(softmax[half].largest, fmaxf(fmaxf(all.x, all.y), fmaxf(all.z, all.w)));
      keep[half] = rescale(softmax[half].largest, largest, call.factor);
      softmax[half].largest = largest;
      const float shift = __fmul_rn(anchor(largest), call.factor);
      const int slot = ((row + 8 * half) * 4 + lane % 4) * kSplitWarps + warp;
      shared_sums[slot] = to_probabilities(s[0], s[1], half, shift, call.factor);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float x = s[i][2 * half], y = s[i][2 * half + 1];
        if constexpr (Memory::kCodes) x = __fmul_rn(x, value_scales[i].x), y = __fmul_rn(y, value_scales[i].y);
        const int at = warp * kPageTokens + 8 * i + column;
        *reinterpret_cast<unsigned*>(memory + Memory::kProbabilitiesAt + (row + 8 * half) * Memory::kProbabilityRow +
                                     at * 2) = pack_bf16(x, y);
      }
    }
    wait_copies<2 * kStages - 1>();
    if constexpr (Memory::kCodes) reader.widen_values(chunk);
    __syncthreads();  // sums, probabilities and values are there

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float4 sums = reinterpret_cast<const float4*>(shared_sums)[(row + 8 * half) * 4 + lane % 4];
      softmax[half].sum = add_sums(softmax[half].sum, keep[half], sums.x, sums.y, sums.z, sums.w);
    }
    unsigned p[kPages][4];
#pragma unroll
    for (int k = 0; k < kPages; ++k) {
      load_matrices(address + Memory::kProbabilitiesAt + (lane & 15) * Memory::kProbabilityRow + (lane >> 4) * 16 +
                        k * kPageTokens * 2,
                    p[k]);
    }
    const unsigned values = address + Memory::values(chunk) + lane * Memory::kValueRow + warp * kColumns * 16;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) o[i][e] = __fmul_rn(o[i][e], keep[e / 2]);
#pragma unroll
      for (int k = 0; k < kPages; k += 2) {
        unsigned b[4];
        load_matrices_transposed(values + k * kPageTokens * Memory::kValueRow + i * 16, b);
        multiply_add(o[i], p[k], b[0], b[1]);
        multiply_add(o[i], p[k + 1], b[2], b[3]);
      }
    }
  }

  const bool alone = seen.first / kAttendSplit == seen.last / kAttendSplit;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::int32_t query = first_query + row + 8 * half;
    softmax[half].sum = quad_sum(softmax[half].sum);
    if (query >= queries.count) continue;
    Softmax merged;
    const Fold fold = fold_span(merged, softmax[half], call.factor);
    const float multiplier = finish(call, merged, queries.head(query));
    const std::int64_t slot = partial_slot(call, blockIdx.x, queries.kv_head, blockIdx.z, query);
    float* const target = alone ? queries.out(query) : partial_values(call, slot);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int d = (warp * kColumns + i) * 8 + column;
      float2 pair = make_float2(o[i][2 * half], o[i][2 * half + 1]);
      if (alone) {
        pair.x = finished(fold_value(0.0f, pair.x, fold), multiplier);
        pair.y = finished(fold_value(0.0f, pair.y, fold), multiplier);
      }
      if (d < args.head_dim) *reinterpret_cast<float2*>(target + d) = pair;
    }
    if (!alone && warp == 0 && lane % 4 == 0) {
      *partial_softmax(call, slot) = make_float2(softmax[half].largest, softmax[half].sum);
    }
  }
}

template <int kDim, KvFormat kFormat>
__global__ void __launch_bounds__(kSplitWarps * 32) attend_split_kernel(const __grid_constant__ Call call) {
  let_next_start();
  wait_for_inputs();
  extern __shared__ __align__(128) std::byte memory[];
  if constexpr (kTensorCores) split_block<kDim, kFormat>(call, memory);
}

constexpr int kMergeWarps = 4;

/// Folds the spans of tiles that have several; a warp for each query.
__global__ void __launch_bounds__(kMergeWarps * 32) attend_merge_kernel(const __grid_constant__ Call call) {
  let_next_start();
  wait_for_inputs();
  const std::int32_t index = blockIdx.y * kMergeWarps + threadIdx.x / 32;
  const std::int32_t kv_head = index / call.queries, query = index % call.queries;
  if (kv_head >= call.launch.kv_heads) return;
  const Queries queries(call, blockIdx.x, kv_head);
  const Positions tile_seen = queries.seen();
  const std::int32_t first_span = tile_seen.first / kAttendSplit;
  if (query >= queries.count || first_span == tile_seen.last / kAttendSplit) return;
  const Positions seen = seen_from(call, queries.position(query), queries.position(query));
  for (int d = threadIdx.x % 32 * 4; d < call.launch.head_dim; d += 128) {
    Softmax merged;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
    for (std::int32_t span = seen.first / kAttendSplit; span <= seen.last / kAttendSplit; ++span) {
      const std::int64_t slot = partial_slot(call, blockIdx.x, kv_head, span - first_span, query);
      const float2 softmax = *partial_softmax(call, slot);
      const float4 o = *reinterpret_cast<const float4*>(partial_values(call, slot) + d);
      const Fold fold = fold_span(merged, {softmax.x, softmax.y}, call.factor);
      sum.x = fold_value(sum.x, o.x, fold);
      sum.y = fold_value(sum.y, o.y, fold);
      sum.z = fold_value(sum.z, o.z, fold);
      sum.w = fold_value(sum.w, o.w, fold);
    }
    const float multiplier = finish(call, merged, queries.head(query));
    *reinterpret_cast<float4*>(queries.out(query) + d) =
        make_float4(finished(sum.x, multiplier), finished(sum.y, multiplier), finished(sum.z, multiplier),
                    finished(sum.w, multiplier));
  }
}

// ---- Whole: many queries, all positions ----

/// How a block of the whole kernel is made up: kTiles times 16 queries to a warp.
template <int kDim>
struct WholeShape {
  static constexpr int kWarps = 4, kTiles = whole_queries(kDim) / (16 * kWarps);
};

template <int kDim, KvFormat kFormat, int kTiles, int kWarps>
struct WholeMemory : ChunkMemory<kDim, kFormat, 1> {
  static constexpr int kQueryRow = kDim * 2 + 16;  // bytes
  static constexpr int kQueriesAt = ChunkMemory<kDim, kFormat, 1>::kBytes;
  static constexpr int kBytes = kQueriesAt + kTiles * 16 * kWarps * kQueryRow;
};

/// The products of a warp with what lies in shared memory.
template <int kDim, KvFormat kFormat, int kTiles, int kWarps>
class WholeWarp : public WholeRows<kDim, kFormat != KvFormat::bf16, kTiles> {
  using Memory = WholeMemory<kDim, kFormat, kTiles, kWarps>;
  using Rows = WholeRows<kDim, kFormat != KvFormat::bf16, kTiles>;
  using Rows::lane_;
  using Rows::o;
  using Rows::p;

 public:
  __device__ __forceinline__ WholeWarp(const Queries& queries, std::int32_t block_query, std::byte* memory)
      : Rows(queries, block_query + static_cast<int>(threadIdx.x) / 32 * (16 * kTiles)),
        memory_(memory),
        address_(shared_address(memory)) {}

  /// Products with the keys, and the running softmax; leaves the probabilities in p.
  __device__ __forceinline__ void weigh(std::int32_t chunk) {
    float s[kTiles][kAttendChunk / 8][4] = {};
    const unsigned keys = address_ + Memory::keys(chunk);
    const unsigned q = address_ + Memory::kQueriesAt +
                       (static_cast<int>(threadIdx.x) / 32 * (16 * kTiles) + (lane_ & 15)) * Memory::kQueryRow +
                       (lane_ >> 4) * 16;
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      unsigned a[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) load_matrices(q + t * 16 * Memory::kQueryRow + k * 32, a[t]);
#pragma unroll
      for (int page = 0; page < kPages; ++page) {
        unsigned b[4];
        load_matrices_transposed(key_fragment(keys, lane_, page) + k * 16 * Memory::kKeyRow, b);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          multiply_add(s[t][2 * page], a[t], b[0], b[1]);
          multiply_add(s[t][2 * page + 1], a[t], b[2], b[3]);
        }
      }
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const float2 keep = Rows::take_scores(chunk, t, s[t], [&](int i) { return scales(chunk, i, false); });
      Rows::pack(t, s[t], [&](int i) { return scales(chunk, i, true); });
      Rows::rescale_sums(t, keep);
    }
  }

  /// Adds the products of the probabilities with the values.
  __device__ __forceinline__ void add_values(std::int32_t chunk) {
    const unsigned values = address_ + Memory::values(chunk) + (lane_ & 15) * Memory::kValueRow + (lane_ >> 4) * 16;
#pragma unroll
    for (int k = 0; k < kPages; ++k) {
#pragma unroll
      for (int i = 0; i < kDim / 8; i += 2) {
        unsigned b[4];
        load_matrices_transposed(values + k * kPageTokens * Memory::kValueRow + i * 16, b);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          multiply_add(o[t][i], p[t][k], b[0], b[1]);
          multiply_add(o[t][i + 1], p[t][k], b[2], b[3]);
        }
      }
    }
  }

 private:
  /// Of positions 8 i + 2 (lane % 4) of the chunk and the next.
  [[nodiscard]] __device__ __forceinline__ float2 scales(std::int32_t chunk, int i, bool of_values) const {
    if constexpr (!Memory::kCodes) return make_float2(1.0f, 1.0f);
    const auto* const all = reinterpret_cast<const float2*>(memory_ + Memory::scales(chunk));
    return all[((of_values ? kAttendChunk : 0) + 8 * i) / 2 + lane_ % 4];
  }

  std::byte* memory_;
  unsigned address_;
};

/// q of the block's queries, rounded, into shared memory; zeros where there is no query or dimension.
template <int kDim, typename Memory, int kCount, int kThreads>
__device__ __forceinline__ void store_q(const Queries& queries, std::int32_t first_query, std::byte* memory) {
  for (int i = threadIdx.x; i < kCount * (kDim / 8); i += kThreads) {
    const std::int32_t query = first_query + i / (kDim / 8);
    const int d = i % (kDim / 8) * 8;
    uint4 packed = make_uint4(0, 0, 0, 0);
    if (query < queries.count && d < queries.call->launch.head_dim) {
      const auto* const source = reinterpret_cast<const float4*>(queries.q(query) + d);
      const float4 low = source[0], high = source[1];
      packed = make_uint4(pack_bf16(low.x, low.y), pack_bf16(low.z, low.w), pack_bf16(high.x, high.y),
                          pack_bf16(high.z, high.w));
    }
    *reinterpret_cast<uint4*>(memory + Memory::kQueriesAt + i / (kDim / 8) * Memory::kQueryRow + d * 2) = packed;
  }
}

/// Values of a chunk arrive while its scores are computed, keys of the next while its values are added. Later tiles of
/// a launch begin first: in a prompt those are the longest.
template <int kDim, KvFormat kFormat, int kTiles, int kWarps>
__device__ __forceinline__ void whole_block(const Call& call, std::byte* memory) {
  constexpr int kQueries = kTiles * 16 * kWarps;
  using Memory = WholeMemory<kDim, kFormat, kTiles, kWarps>;
  const AttendLaunch& args = call.launch;
  const Queries queries(call, args.tile_count - 1 - blockIdx.x, blockIdx.y % args.kv_heads);
  const std::int32_t first_query = blockIdx.y / args.kv_heads * kQueries;
  if (first_query >= queries.count) return;
  const Positions seen = queries.seen();
  const std::int32_t begin = seen.first / kAttendChunk, last = seen.last / kAttendChunk;

  ChunkReader<kDim, kFormat, 1, kWarps> reader(queries, seen, memory);
  reader.look_up(begin);
  reader.clear_padding();
  reader.copy_keys(begin);
  commit_copies();
  store_q<kDim, Memory, kQueries, kWarps * 32>(queries, first_query, memory);
  WholeWarp<kDim, kFormat, kTiles, kWarps> warp(queries, first_query, memory);
  bool first_span = true;
  for (std::int32_t chunk = begin; chunk <= last; ++chunk) {
    const bool sees = warp.sees(chunk);
    wait_copies<0>();
    if constexpr (Memory::kCodes) reader.widen_keys(chunk);
    __syncthreads();  // keys are there; nobody needs the last chunk's values any more
    reader.copy_values(chunk);
    commit_copies();
    if (sees) warp.weigh(chunk);
    wait_copies<0>();
    if constexpr (Memory::kCodes) reader.widen_values(chunk);
    __syncthreads();  // values are there; nobody needs the keys any more
    if (chunk < last) reader.copy_keys(chunk + 1);
    commit_copies();
    if (sees) warp.add_values(chunk);
    if (chunk == last || (chunk + 1) % kSpanChunks == 0) {
      warp.end_span(first_span, chunk == last, [&](int t, int half, int i) { return warp.out(t, half, i); });
      first_span = false;
    }
  }
}

template <int kDim, KvFormat kFormat, int kTiles, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, 8 / kWarps) attend_whole_kernel(const __grid_constant__ Call call) {
  let_next_start();
  wait_for_inputs();
  extern __shared__ __align__(128) std::byte memory[];
  if constexpr (kTensorCores) whole_block<kDim, kFormat, kTiles, kWarps>(call, memory);
}

// ---- Host ----

constexpr unsigned blocks_of(std::int32_t count, std::int32_t size) {
  return static_cast<unsigned>((count + size - 1) / size);
}

template <int kDim, KvFormat kFormat, int kTiles, int kWarps>
cudaError_t launch_whole(const AttendLaunch& launch, cudaStream_t stream) {
  const Call call = make_call(launch);
  constexpr int kBytes = WholeMemory<kDim, kFormat, kTiles, kWarps>::kBytes;
  const cudaError_t error = cudaFuncSetAttribute(attend_whole_kernel<kDim, kFormat, kTiles, kWarps>,
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>(launch.tile_count),
                  static_cast<unsigned>(launch.kv_heads) * blocks_of(call.queries, kTiles * 16 * kWarps));
  return start(attend_whole_kernel<kDim, kFormat, kTiles, kWarps>, grid, kWarps * 32, kBytes, stream, call);
}

template <int kDim, KvFormat kFormat>
cudaError_t launch_split(const AttendLaunch& launch, cudaStream_t stream) {
  const Call call = make_call(launch);
  constexpr int kBytes = SplitMemory<kDim, kFormat>::kBytes;
  const cudaError_t error =
      cudaFuncSetAttribute(attend_split_kernel<kDim, kFormat>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const auto tiles = static_cast<unsigned>(launch.tile_count);
  const dim3 grid(tiles, static_cast<unsigned>(launch.kv_heads) * blocks_of(call.queries, kSplitQueries),
                  static_cast<unsigned>(call.spans));
  const cudaError_t started = start(attend_split_kernel<kDim, kFormat>, grid, kSplitWarps * 32, kBytes, stream, call);
  if (started != cudaSuccess || call.spans == 1) return started;
  const dim3 merge_grid(tiles, blocks_of(launch.kv_heads * call.queries, kMergeWarps));
  return start(attend_merge_kernel, merge_grid, kMergeWarps * 32, 0, stream, call);
}

template <int kHeadDim, KvFormat kKvFormat>
struct Kernels {
  static constexpr int kDim = kHeadDim;
  static constexpr KvFormat kFormat = kKvFormat;
};

/// visit(Kernels) with those that have room for head_dim.
template <KvFormat kFormat, typename Visit>
auto with_dim(std::int32_t head_dim, Visit visit) {
  if (head_dim <= 64) return visit(Kernels<64, kFormat>());
  if (head_dim <= 96) return visit(Kernels<96, kFormat>());
  if (head_dim <= 128) return visit(Kernels<128, kFormat>());
  return visit(Kernels<256, kFormat>());
}

template <typename Visit>
auto with_kernels(const AttendLaunch& launch, Visit visit) {
  switch (launch.kv.format) {
    case KvFormat::int8:
      return with_dim<KvFormat::int8>(launch.head_dim, visit);
    case KvFormat::fp8_e4m3:
      return with_dim<KvFormat::fp8_e4m3>(launch.head_dim, visit);
    default:
      return with_dim<KvFormat::bf16>(launch.head_dim, visit);
  }
}

/// Bytes of shared memory that a block may have.
int shared_limit(int capability) {
  if (capability >= 90 && capability < 120) return 227 * 1024;
  return capability == 80 || capability == 87 ? 163 * 1024 : 99 * 1024;
}

}  // namespace

bool attend_mma_supports(int capability, const AttendLaunch& launch) {
  const KvView& kv = launch.kv;
  const bool shape = launch.kv_heads > 0 && launch.heads % launch.kv_heads == 0 && launch.head_dim > 0 &&
                     launch.head_dim <= 256 && launch.head_dim % 16 == 0 && launch.q_stride % 4 == 0;
  const bool pages = kv.format != KvFormat::f32 && kv.page_tokens == kPageTokens && kv.page_bytes % 16 == 0 &&
                     kv.key_offset % 16 == 0 && kv.value_offset % 16 == 0 && kv.key_scale_offset % 4 == 0 &&
                     kv.value_scale_offset % 4 == 0;
  if (capability < 80 || !shape || !pages || launch.scale <= 0.0f || launch.softcap < 0.0f) return false;
  return with_kernels(launch, [&]<typename Chosen>(Chosen) {
    using Whole = WholeShape<Chosen::kDim>;
    return std::max(SplitMemory<Chosen::kDim, Chosen::kFormat>::kBytes,
                    WholeMemory<Chosen::kDim, Chosen::kFormat, Whole::kTiles, Whole::kWarps>::kBytes) <=
           shared_limit(capability);
  });
}

std::size_t attend_partial_floats(const AttendLaunch& launch) {
  return static_cast<std::size_t>(launch.tile_count) * static_cast<std::size_t>(launch.tile_rows) *
         static_cast<std::size_t>(launch.heads) * static_cast<std::size_t>(spans_of(launch)) *
         (static_cast<std::size_t>(launch.head_dim) + 2);
}

cudaError_t attend_mma(const AttendLaunch& launch, cudaStream_t stream) {
  if (launch.tile_count == 0) return cudaSuccess;
  return with_kernels(launch, [&]<typename Chosen>(Chosen) {
    using Whole = WholeShape<Chosen::kDim>;
    if (launch.partials != nullptr) return launch_split<Chosen::kDim, Chosen::kFormat>(launch, stream);
    if (attend_wgmma_supports(launch)) return attend_wgmma(launch, stream);
    return launch_whole<Chosen::kDim, Chosen::kFormat, Whole::kTiles, Whole::kWarps>(launch, stream);
  });
}

}  // namespace millrace::cuda
