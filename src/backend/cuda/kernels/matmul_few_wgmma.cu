// Products for few rows on compute capability 9.0, as in matmul_few.cu, by instructions of warp groups: 64 outputs take
// the inputs from shared memory once, and codes of E4M3 are multiplied as they are.
//
// Four warps bring spans of weights and inputs by bulk copies, so that memory is kept busy whatever the other four do,
// which multiply one part of the sums after the other. A weight of few outputs would leave most of the device idle: two
// or four blocks, a cluster, share its outputs then, and each has some of the parts.
#include "backend/cuda/kernels/grid.cuh"
#include "backend/cuda/kernels/products.cuh"
#include "backend/cuda/kernels/wgmma.cuh"

namespace millrace::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kTiles = 4;  // of 16 outputs, one for each warp that multiplies

/// Shared memory has stages, and each some spans of the weights, one tile after the other, then of the inputs. Where
/// kSplit blocks share outputs, the sums of a block's parts come behind them, [parts][kN * 8 rows][outputs].
template <Storage kStorage, Product kProduct, int kN, int kSplit>
struct Memory {
  static constexpr int kSpans = 8 / RawSpan<kStorage>::kWords;  // of a stage: 16 KB of weights
  static constexpr int kTile = kSpans * kWeightSpan<kStorage>, kRowTile = kSpans * kInputSpan<kProduct>;
  static constexpr int kWeights = kTiles * kTile, kStage = kWeights + kN * kRowTile, kSpanBytes = kStage / kSpans;
  static constexpr int kPart = kN * 8 * kTiles * kTileRows, kParts = kSplit == 1 ? 0 : cuda::kParts / kSplit;
  // That share a multiprocessor. A block multiplies a span in some hundred cycles, however few the rows are: where it
  // has little to do for them, more blocks keep up with memory.
  static constexpr int kBlocks = kSplit == 1 ? 2 : kSplit == 4 ? 5 - kN : kN > 4 ? 1 : 2;
  static constexpr int kStages = ((224 << 10) / kBlocks - kParts * kPart * 4) / kStage;
  static constexpr int kBytes = kStages * kStage + kParts * kPart * 4;
};

/// The spans of the inputs that a block has: [begin, end) of `all`.
template <Product kProduct, int kSplit>
struct Spans {
  std::int32_t all, begin, end, part;

  __device__ Spans(const WeightView& w, int rank)
      : all(static_cast<std::int32_t>(round_up_to(w.cols, kSpanCols) / kSpanCols)),
        begin(0),
        end(all),
        // Sums of integers are exact: one part does where nobody shares.
        part(kProduct == Product::bytes && kSplit == 1 ? all : static_cast<std::int32_t>(part_spans(w.cols, 0))) {
    if constexpr (kSplit > 1) {
      const std::int32_t each = kParts / kSplit * part;
      begin = rank * each < all ? rank * each : all;
      end = begin + each < all ? begin + each : all;
    }
  }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// A warp brings a tile of the weights, and some tiles of the inputs.
template <Storage kStorage, Product kProduct, int kN, int kSplit>
__device__ inline void copy_spans(const MatmulLaunch& args, const Spans<kProduct, kSplit>& spans, std::byte* space,
                                  std::uint64_t* arrived, std::uint64_t* left) {
  using Block = Memory<kStorage, kProduct, kN, kSplit>;
  constexpr int kRowTiles = kN > kTiles ? kN / kTiles : 1;  // of this warp
  const WeightView& w = args.weight;
  const int warp = threadIdx.x / 32 % kTiles;
  const std::int64_t last = (w.rows + kTileRows - 1) / kTileRows - 1,
                     wanted = std::int64_t{blockIdx.x / kSplit} * kTiles + warp;
  const std::byte* weights = w.data + (wanted < last ? wanted : last) * spans.all * kWeightSpan<kStorage>;
  const std::int64_t row_stride = std::int64_t{spans.all} * kInputSpan<kProduct>;
  const std::byte* inputs =
      static_cast<const std::byte*>(args.tiles) + (std::int64_t{blockIdx.y} * kN + warp * kRowTiles) * row_stride;
  const bool copies = threadIdx.x % 32 == 0, copies_inputs = copies && warp * kRowTiles < kN;
  const auto spans_from = [&](int first) {
    return spans.end - first < Block::kSpans ? spans.end - first : Block::kSpans;
  };
  const auto copy_weights = [&](int first, int stage) {
    const int here = spans_from(first);
    if (warp == 0) arrive_expecting(&arrived[stage], here * Block::kSpanBytes);
    copy_bulk(space + stage * Block::kStage + warp * Block::kTile, weights + first * kWeightSpan<kStorage>,
              here * kWeightSpan<kStorage>, &arrived[stage]);
  };
  const auto copy_inputs = [&](int first, int stage) {
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
      copy_bulk(space + stage * Block::kStage + Block::kWeights + (warp * kRowTiles + n) * Block::kRowTile,
                inputs + n * row_stride + first * kInputSpan<kProduct>, spans_from(first) * kInputSpan<kProduct>,
                &arrived[stage]);
    }
  };
  // Weights are there before the kernel before this one has ended.
  for (int stage = 0; copies && stage < Block::kStages; ++stage) {
    const int first = spans.begin + stage * Block::kSpans;
    if (first < spans.end) copy_weights(first, stage);
  }
  __syncwarp();
  wait_for_inputs();
  let_next_start();
  if (copies_inputs) {
    for (int stage = 0; stage < Block::kStages; ++stage) {
      const int first = spans.begin + stage * Block::kSpans;
      if (first < spans.end) copy_inputs(first, stage);
    }
  }
  if (copies) {
    int stage = 0, parity = 0;
    for (int first = spans.begin + Block::kStages * Block::kSpans; first < spans.end; first += Block::kSpans) {
      wait(&left[stage], parity);
      copy_weights(first, stage);
      if (copies_inputs) copy_inputs(first, stage);
      if (++stage == Block::kStages) stage = 0, parity ^= 1;
    }
  }
  __syncwarp();
}

/// Adds the parts of all blocks of the cluster; each block has some of the sums.
template <Storage kStorage, Product kProduct, int kN, int kSplit>
__device__ inline void add_parts(const MatmulLaunch& args, const Sum<kProduct>* parts, std::uint32_t rank) {
  using Block = Memory<kStorage, kProduct, kN, kSplit>;
  constexpr int kOutputs = kTiles * kTileRows, kEach = Block::kPart / kSplit;
  for (int i = threadIdx.x; i < kEach; i += kThreads) {
    const int index = static_cast<int>(rank) * kEach + i;
    const std::int64_t output = std::int64_t{blockIdx.x / kSplit} * kOutputs + index % kOutputs,
                       row = std::int64_t{blockIdx.y} * kN * 8 + index / kOutputs;
    if (output >= args.weight.rows || row >= args.rows) continue;
    Sum<kProduct> total = 0;
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      const std::uint32_t bits = read_shared_of(parts + p % Block::kParts * Block::kPart + index,
                                                static_cast<std::uint32_t>(p / Block::kParts));
      total += *reinterpret_cast<const Sum<kProduct>*>(&bits);
    }
    store_total<kStorage, kProduct, false>(args, output, row, total);
  }
}

template <Storage kStorage, Product kProduct, int kN, int kSplit>
__device__ inline void multiply_spans(const MatmulLaunch& args, const Spans<kProduct, kSplit>& spans, std::byte* space,
                                      std::uint64_t* arrived, std::uint64_t* left) {
  using Block = Memory<kStorage, kProduct, kN, kSplit>;
  const int warp = threadIdx.x / 32;
  Sum<kProduct> sums[kN][4] = {}, totals[kSplit == 1 ? kN : 1][4] = {};
  auto* part = reinterpret_cast<Sum<kProduct>*>(space + Block::kStages * Block::kStage);
  const auto close = [&] {
    if constexpr (kSplit == 1) {
      close_part<kProduct>(sums, totals);
    } else {
      const int quad = threadIdx.x % 4, line = threadIdx.x % 32 / 4;
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int output = warp * kTileRows + i / 2 * 8 + line, row = n * 8 + quad * 2 + i % 2;
          part[row * (kTiles * kTileRows) + output] = sums[n][i];
          sums[n][i] = 0;
        }
      }
      part += Block::kPart;
    }
  };
  SpanOperands<kStorage, kProduct> operand[2];
  int stage = 0, parity = 0, left_in_part = spans.part;
  for (int first = spans.begin; first < spans.end; first += Block::kSpans) {
    const std::byte* const weights = space + stage * Block::kStage + warp * Block::kTile;
    const std::byte* const inputs = space + stage * Block::kStage + Block::kWeights;
    wait(&arrived[stage], parity);
#pragma unroll
    for (int s = 0; s < Block::kSpans; ++s) {
      if (first + s >= spans.end) break;
      operand[s % 2].load(weights + s * kWeightSpan<kStorage>);
      fence_products();
#pragma unroll
      for (int step = 0; step < SpanOperands<kStorage, kProduct>::kSteps; ++step) {
        begin_product<kProduct>(sums, operand[s % 2].a[step],
                                inputs_at<Block::kRowTile>(inputs + s * kInputSpan<kProduct> + step * 256));
      }
      commit_products();
      if (--left_in_part > 0 && first + s + 1 < spans.end) {
        wait_products<1>();  // the other operand is free
        continue;
      }
      wait_products<0>();
      left_in_part = spans.part;
      close();
    }
    wait_products<0>();
    if (threadIdx.x % 32 == 0) arrive(&left[stage]);
    if (++stage == Block::kStages) stage = 0, parity ^= 1;
  }
  wait_for_inputs();
  if constexpr (kSplit == 1) {
    store_totals<kStorage, kProduct>(args, std::int64_t{blockIdx.x} * kTiles + warp, std::int64_t{blockIdx.y} * kN,
                                     totals);
  } else {
    // Parts without inputs.
    for (const auto* end = reinterpret_cast<Sum<kProduct>*>(space + Block::kBytes); part < end;) close();
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <Storage kStorage, Product kProduct, int kN, int kSplit>
__global__ void __launch_bounds__(kThreads, (Memory<kStorage, kProduct, kN, kSplit>::kBlocks))
    matmul_few_wgmma_kernel(MatmulLaunch args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Block = Memory<kStorage, kProduct, kN, kSplit>;
  extern __shared__ __align__(128) uint4 memory[];
  __shared__ std::uint64_t arrived[Block::kStages], left[Block::kStages];
  auto* const space = reinterpret_cast<std::byte*>(memory);
  if (threadIdx.x == 0) {
    for (int s = 0; s < Block::kStages; ++s) {
      init_barrier(&arrived[s], 1);
      init_barrier(&left[s], kTiles);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  const std::uint32_t rank = kSplit == 1 ? 0 : cluster_rank();
  const Spans<kProduct, kSplit> spans(args.weight, static_cast<int>(rank));
  if (threadIdx.x / 32 < kTiles) {
    let_next_start();
    multiply_spans<kStorage, kProduct, kN, kSplit>(args, spans, space, arrived, left);
  } else {
    copy_spans<kStorage, kProduct, kN, kSplit>(args, spans, space, arrived, left);
  }
  if constexpr (kSplit > 1) {
    __syncthreads();
    sync_cluster();
    add_parts<kStorage, kProduct, kN, kSplit>(
        args, reinterpret_cast<const Sum<kProduct>*>(space + Block::kStages * Block::kStage), rank);
    sync_cluster();  // nobody leaves while others read its parts
  }
#endif
}

template <Storage kStorage, Product kProduct, int kN, int kSplit>
cudaError_t launch_split(const MatmulLaunch& launch, dim3 grid, cudaStream_t stream) {
  constexpr int kBytes = Memory<kStorage, kProduct, kN, kSplit>::kBytes;
  auto* kernel = matmul_few_wgmma_kernel<kStorage, kProduct, kN, kSplit>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  grid.x *= kSplit;
  return start(kernel, grid, kThreads, kBytes, stream, launch, dim3(kSplit));
}

template <Storage kStorage, Product kProduct, int kN>
cudaError_t launch_tiles(const MatmulLaunch& launch, cudaStream_t stream) {
  constexpr std::int64_t kOutputs = kTiles * kTileRows;
  // Blocks that do not fill the 132 multiprocessors of an H100 or H200, or those and their shares do.
  constexpr unsigned kAlone = kN > 4 ? 66 : 132;
  constexpr int kSplit = kN > 2 ? 2 : 4;
  const std::int64_t row_tiles = (launch.rows + 7) / 8;
  const dim3 grid(static_cast<unsigned>((launch.weight.rows + kOutputs - 1) / kOutputs),
                  static_cast<unsigned>((row_tiles + kN - 1) / kN));
  return grid.x * grid.y <= kAlone ? launch_split<kStorage, kProduct, kN, kSplit>(launch, grid, stream)
                                   : launch_split<kStorage, kProduct, kN, 1>(launch, grid, stream);
}

template <Storage kStorage, Product kProduct>
cudaError_t launch_rows(const MatmulLaunch& launch, cudaStream_t stream) {
  if (launch.rows > 32) return launch_tiles<kStorage, kProduct, 8>(launch, stream);
  // Others take matmul_few() for fewer rows.
  if constexpr (kProduct != Product::bytes) {
    if (launch.rows > 8 && launch.rows <= 16) return launch_tiles<kStorage, kProduct, 2>(launch, stream);
  }
  if constexpr (kProduct == Product::e4m3) {
    if (launch.rows <= 8) return launch_tiles<kStorage, kProduct, 1>(launch, stream);
  }
  return launch_tiles<kStorage, kProduct, 4>(launch, stream);
}

}  // namespace

cudaError_t matmul_few_wgmma(const MatmulLaunch& launch, cudaStream_t stream) {
  return with_wgmma_product(launch, [&]<Storage kStorage, Product kProduct>() {
    if constexpr (kStorage == Storage::bf16 || kProduct != Product::bf16) {
      return launch_rows<kStorage, kProduct>(launch, stream);
    } else {
      return cudaErrorInvalidValue;
    }
  });
}

}  // namespace millrace::cuda
