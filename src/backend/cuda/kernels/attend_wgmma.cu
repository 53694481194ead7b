// Attention for many queries on compute capability 9.0, by warp group matrix instructions (PTX ISA, "wgmma"), which
// have twice the rate of those of attend_mma.cu and give the same bits.
//
// A block has 128 queries. One warp group copies chunks of keys and values; two have 64 queries each, and begin the
// products with the keys of the next chunk before those with the values of the last, so that one of them multiplies
// while the softmax of the other is computed (after Shah et al., "FlashAttention-3", 2024).
#include "backend/cuda/kernels/attend_whole.cuh"
#include "backend/cuda/kernels/grid.cuh"
#include "backend/cuda/kernels/wgmma.cuh"

namespace millrace::cuda {

namespace {

constexpr int kGroups = 2, kGroupQueries = 64;
constexpr int kThreads = (kGroups + 1) * 128;  // one group more for the copies
constexpr int kStages = 5;                     // chunks in shared memory
static_assert(kGroups * kGroupQueries == whole_queries(128));

/// A chunk in shared memory: rows of 128 bytes, which are the 64 positions of a dimension (of keys) or 64 dimensions of
/// a position (of values), and in a row the unit of 16 bytes u of row r at u ^ r % 8. So the instruction reads right
/// operands that are stored with what it does not sum over side by side, and the eight units of a column lie in other
/// banks.
template <int kDim>
struct Chunk {
  static constexpr int kRow = 128, kKeyBytes = kDim * kRow;
  static constexpr int kValueGroup = kAttendChunk * kRow;  // of 64 dimensions
  static constexpr int kBytes = kKeyBytes + kDim / 64 * kValueGroup;

  static __device__ __forceinline__ int unit(int row, int unit) { return row * kRow + ((unit ^ (row & 7)) << 4); }
};

/// What else is in shared memory: the sums of the spans that are over, a thread's beside its neighbour's.
template <int kDim>
constexpr int kSumBytes = kGroups* kGroupQueries* kDim * 4;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kCopyRegisters = 72, kSumRegisters = 216;  // of a thread: 384 threads share 65,536
constexpr int kCopiesAhead = 1;                          // chunks whose copies are under way when one is announced

/// The descriptor of a right operand from a row on: eight rows are 1,024 bytes, and other 64 columns follow behind all
/// rows of values.
template <int kDim>
__device__ __forceinline__ std::uint64_t operand_at(unsigned address) {
  constexpr std::uint64_t kEightRows = 1024, kOtherColumns = Chunk<kDim>::kValueGroup, kSwizzled = 1;
  return ((address & 0x3ffffu) >> 4) | (kOtherColumns >> 4) << 16 | (kEightRows >> 4) << 32 | kSwizzled << 62;
}

/// What was written to shared memory is there for matrix instructions.
__device__ __forceinline__ void show_to_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// Four warps, a page of each chunk for each. Pages without a position that the tile sees are not touched, and values
/// of positions that it does not see become zeros.
template <int kDim>
__device__ __forceinline__ void copy_chunks(const Queries& queries, std::byte* memory, std::uint64_t* arrived,
                                            std::uint64_t* left) {
  using Memory = Chunk<kDim>;
  const AttendLaunch& args = queries.call->launch;
  const Positions seen = queries.seen();
  const std::int32_t begin = seen.first / kAttendChunk, last = seen.last / kAttendChunk;
  const std::int32_t* const table = args.page_tables + args.table_offsets[queries.tile.sequence];
  const int page = static_cast<int>(threadIdx.x) / 32 % kPages, lane = static_cast<int>(threadIdx.x) % 32;
  const std::size_t head = static_cast<std::size_t>(queries.kv_head * kDim) * (kPageTokens * 2);
  const auto arrive_at = [&](std::int32_t count) {
    show_to_products();
    __syncwarp();
    if (lane == 0) arrive(&arrived[count % kStages]);
  };
  std::int32_t ids = -1;
  for (std::int32_t chunk = begin, count = 0; chunk <= last; ++chunk, ++count) {
    if (count % 32 == 0) {  // the pages of 32 chunks; a lane holds that of one
      const std::int32_t index = (chunk + lane) * kPages + page;
      ids = index >= seen.first / kPageTokens && index <= seen.last / kPageTokens ? table[index] : -1;
    }
    const std::int32_t id = __shfl_sync(kAllLanes, ids, count % 32);
    if (count >= kStages) wait(&left[count % kStages], (count / kStages - 1) & 1);
    const unsigned stage = shared_address(memory) + count % kStages * Memory::kBytes;
    const std::byte* const source = args.kv.pages + static_cast<std::size_t>(max(id, 0)) * args.kv.page_bytes + head;
    if (id >= 0) {
#pragma unroll
      for (int i = 0; i < kDim * 2 / 32; ++i) {
        const int dimension = i * 16 + lane % 16, half = lane / 16;
        copy_16(stage + Memory::unit(dimension, 2 * page + half),
                source + args.kv.key_offset + (2 * dimension + half) * 16, false);
      }
    }
#pragma unroll
    for (int i = 0; i < kPageTokens * (kDim / 8) / 32; ++i) {
      const int unit = i * 32 + lane, token = page * kPageTokens + unit / (kDim / 8), column = unit % (kDim / 8);
      const std::int32_t position = chunk * kAttendChunk + token;
      copy_16(stage + Memory::kKeyBytes + column / 8 * Memory::kValueGroup + Memory::unit(token, column % 8),
              source + args.kv.value_offset + unit * 16, position < seen.first || position > seen.last);
    }
    commit_copies();
    if (count < kCopiesAhead) continue;
    wait_copies<kCopiesAhead>();
    arrive_at(count - kCopiesAhead);
  }
  wait_copies<0>();
  const std::int32_t chunks = last - begin + 1;
  for (std::int32_t count = max(0, chunks - kCopiesAhead); count < chunks; ++count) arrive_at(count);
}

/// Sums that instructions may still be adding to are not to be read before this.
template <int kTiles>
__device__ __forceinline__ void hold(float (&d)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
    asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
}

/// Begins the products of 64 queries with the keys of a chunk.
template <int kDim>
__device__ __forceinline__ void begin_scores(const unsigned (&q)[kDim / 16][4], unsigned stage,
                                             float (&s)[kAttendChunk / 8][4]) {
#pragma unroll
  for (int n = 0; n < kAttendChunk / 8; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
  hold(s);
  fence_products();
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    begin_product<Product::bf16, kAttendChunk / 8, true>(s, q[k], operand_at<kDim>(stage + k * 16 * Chunk<kDim>::kRow));
  }
  commit_products();
}

/// Begins to add the products of their probabilities with its values.
template <int kDim>
__device__ __forceinline__ void begin_values(const unsigned (&p)[kPages][4], unsigned stage, float (&o)[kDim / 8][4]) {
  hold(o);
  fence_products();
#pragma unroll
  for (int k = 0; k < kPages; ++k) {
    begin_product<Product::bf16, kDim / 8, true>(
        o, p[k], operand_at<kDim>(stage + Chunk<kDim>::kKeyBytes + k * 16 * Chunk<kDim>::kRow));
  }
  commit_products();
}

/// A warp group's queries through all chunks.
template <int kDim>
__device__ __forceinline__ void attend_chunks(const Queries& queries, std::int32_t block_query, std::byte* memory,
                                              std::uint64_t* arrived, std::uint64_t* left) {
  const Call& call = *queries.call;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const std::int32_t group_query = block_query + warp / 4 * kGroupQueries, first_query = block_query + warp * 16;
  const Positions tile = queries.seen();
  const std::int32_t begin = tile.first / kAttendChunk, chunks = tile.last / kAttendChunk - begin + 1;
  // Chunks that the group sees anything of: all warps go through them together.
  const Positions seen = seen_from(call, queries.position(group_query), queries.position(group_query + 63));
  std::int32_t own = seen.first / kAttendChunk - begin, end = seen.last / kAttendChunk - begin + 1;
  if (group_query >= queries.count) own = end = chunks;
  const auto arrival = [&](std::int32_t count) { wait(&arrived[count % kStages], count / kStages & 1); };
  const auto leave = [&](std::int32_t count) {
    if (lane == 0) arrive(&left[count % kStages]);
  };
  const auto stage = [&](std::int32_t count) {
    return shared_address(memory) + static_cast<unsigned>(count % kStages) * Chunk<kDim>::kBytes;
  };
  const auto pass = [&](std::int32_t first, std::int32_t behind) {
    for (std::int32_t count = first; count < behind; ++count) {
      arrival(count);
      leave(count);
    }
  };
  constexpr auto kUnscaled = [](int /*i*/) { return make_float2(1.0f, 1.0f); };
  auto* const sums = reinterpret_cast<float2*>(memory + kStages * Chunk<kDim>::kBytes) + threadIdx.x;
  const auto kept = [sums](int /*t*/, int half, int i) { return sums + (2 * i + half) * (kGroups * 128); };

  pass(0, own);
  if (own < end) {
    WholeRows<kDim, false, 1> rows(queries, first_query);
    unsigned q[kDim / 16][4];
    load_q<kDim>(queries, first_query, q);
    float s[kAttendChunk / 8][4];
    arrival(own);
    begin_scores<kDim>(q, stage(own), s);
    wait_products<0>();
    hold(s);
    rows.take_scores(begin + own, 0, s, kUnscaled);
    rows.pack(0, s, kUnscaled);
    bool first_span = true;
    for (std::int32_t count = own; count + 1 < end; ++count) {
      arrival(count + 1);
      begin_scores<kDim>(q, stage(count + 1), s);
      begin_values<kDim>(rows.p[0], stage(count), rows.o[0]);
      const bool ends_span = (begin + count + 1) % kSpanChunks == 0;
      if (ends_span) {
        wait_products<0>();
        hold(rows.o[0]);
        rows.end_span(first_span, false, kept);
        first_span = false;
      } else {
        wait_products<1>();
      }
      hold(s);
      const float2 keep = rows.take_scores(begin + count + 1, 0, s, kUnscaled);
      wait_products<0>();
      hold(rows.o[0]);
      leave(count);
      rows.rescale_sums(0, keep);
      rows.pack(0, s, kUnscaled);
    }
    begin_values<kDim>(rows.p[0], stage(end - 1), rows.o[0]);
    wait_products<0>();
    hold(rows.o[0]);
    leave(end - 1);
    rows.end_span(first_span, true, kept);
  }
  pass(end, chunks);
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <int kDim>
__global__ void __launch_bounds__(kThreads, 1) attend_wgmma_kernel(const __grid_constant__ Call call) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) std::byte memory[];
  __shared__ std::uint64_t arrived[kStages], left[kStages];
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      init_barrier(&arrived[s], 4);         // warps that copy
      init_barrier(&left[s], 4 * kGroups);  // warps that multiply
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  let_next_start();
  wait_for_inputs();
  const AttendLaunch& args = call.launch;
  // Later tiles begin first: in a prompt those are the longest.
  const Queries queries(call, args.tile_count - 1 - blockIdx.x, blockIdx.y % args.kv_heads);
  const std::int32_t block_query = blockIdx.y / args.kv_heads * (kGroups * kGroupQueries);
  if (block_query >= queries.count) return;
  if (threadIdx.x >= kGroups * 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCopyRegisters));
    copy_chunks<kDim>(queries, memory, arrived, left);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kSumRegisters));
    attend_chunks<kDim>(queries, block_query, memory, arrived, left);
  }
#endif
}

template <int kDim>
cudaError_t launch_kernel(const Call& call, cudaStream_t stream) {
  constexpr int kBytes = kStages * Chunk<kDim>::kBytes + kSumBytes<kDim>;
  const cudaError_t error =
      cudaFuncSetAttribute(attend_wgmma_kernel<kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const AttendLaunch& launch = call.launch;
  const auto blocks = static_cast<unsigned>((call.queries + kGroups * kGroupQueries - 1) / (kGroups * kGroupQueries));
  const dim3 grid(static_cast<unsigned>(launch.tile_count), static_cast<unsigned>(launch.kv_heads) * blocks);
  return start(attend_wgmma_kernel<kDim>, grid, kThreads, kBytes, stream, call);
}

}  // namespace

bool attend_wgmma_supports(const AttendLaunch& launch) {
  return launch.wgmma && launch.kv.format == KvFormat::bf16 && (launch.head_dim == 64 || launch.head_dim == 128);
}

cudaError_t attend_wgmma(const AttendLaunch& launch, cudaStream_t stream) {
  const Call call = make_call(launch);
  return launch.head_dim == 64 ? launch_kernel<64>(call, stream) : launch_kernel<128>(call, stream);
}

}  // namespace millrace::cuda
