// Products for many rows on compute capability 9.0: warp group matrix instructions (PTX ISA, "wgmma"), which multiply
// weights in registers with inputs in shared memory, twice as fast as what matmul_many.cu uses and to the same bits.
//
// A block has 128 outputs by 128 rows. One warp group brings spans of weights and inputs by bulk copies; two have 64
// outputs each and multiply. At the rate of the instructions a block of that size reads more than the second level
// cache gives, so four blocks work together (a cluster), two along rows by two along outputs: those that share weights,
// or inputs, bring half of them each for both.
#include "backend/cuda/kernels/grid.cuh"
#include "backend/cuda/kernels/products.cuh"
#include "backend/cuda/kernels/wgmma.cuh"

namespace millrace::cuda {

namespace {

constexpr int kGroups = 2, kGroupTiles = 4;  // warp groups; tiles of 16 outputs of each, one a warp
constexpr int kRowTiles = 16;                // tiles of 8 rows
constexpr int kCluster = 2;                  // blocks along rows, and along outputs
constexpr int kCopiedTiles = kGroups * kGroupTiles / kCluster, kCopiedRowTiles = kRowTiles / kCluster;
constexpr int kThreads = (kGroups + 1) * 128;                 // one group more for the copies
constexpr int kCopyRegisters = 40, kMultiplyRegisters = 232;  // of a thread: 384 threads share 65,536
constexpr int kStages = 6;

/// What a stage of shared memory holds: spans of the block's weights, one tile after the other, then of its inputs.
template <Storage kStorage, Product kProduct>
struct Stage {
  static constexpr int kSpans = kEightBits<kProduct> ? 2 : 1;  // as many bytes of inputs for all products
  static constexpr int kTile = kSpans * kWeightSpan<kStorage>, kRowTile = kSpans * kInputSpan<kProduct>;
  static constexpr int kWeights = kGroups * kGroupTiles * kTile, kBytes = kWeights + kRowTiles * kRowTile;
  static constexpr int kSpanBytes = kBytes / kSpans;  // that arrive with a span
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// Four warps bring span after span, each some pieces of it: half of the block's weights, for its neighbour along rows
/// too, and half of its inputs, for its neighbour along outputs too. A warp begins copies one after the other, some
/// tens of cycles each: one alone would not keep up with the products.
template <Storage kStorage, Product kProduct>
__device__ inline void copy_spans(const MatmulLaunch& args, std::byte* space, std::uint64_t* arrived,
                                  std::uint64_t* left) {
  using Block = Stage<kStorage, kProduct>;
  constexpr int kCopies = (kCopiedTiles + kCopiedRowTiles) / 4;
  static_assert(kCopiedTiles == 4 && kCopiedRowTiles == 8 && kCopies == 3);
  const WeightView& w = args.weight;
  const int warp = threadIdx.x / 32 % 4, spans = static_cast<int>(round_up_to(w.cols, kSpanCols) / kSpanCols);
  const int x = blockIdx.x % kCluster, y = blockIdx.y % kCluster;
  if (threadIdx.x % 32 != 0) return;
  const int tile_part = x * kCopiedTiles + warp, row_part = y * kCopiedRowTiles + 2 * warp;
  const std::int64_t last = (w.rows + kTileRows - 1) / kTileRows - 1;
  const std::int64_t wanted = std::int64_t{blockIdx.y} * kGroups * kGroupTiles + tile_part,
                     tile = wanted < last ? wanted : last;
  const std::byte* weights = w.data + tile * spans * kWeightSpan<kStorage>;
  const std::int64_t row_stride = std::int64_t{spans} * kInputSpan<kProduct>;
  const std::byte* inputs =
      static_cast<const std::byte*>(args.tiles) + (std::int64_t{blockIdx.x} * kRowTiles + row_part) * row_stride;
  // Blocks of a cluster are numbered along rows first.
  const auto along_rows = static_cast<std::uint16_t>(3u << kCluster * y),
             along_outputs = static_cast<std::uint16_t>(5u << x);
  for (int first = 0, count = 0; first < spans; first += Block::kSpans, ++count) {
    const int stage = count % kStages, round = count / kStages;
    const int here = spans - first < Block::kSpans ? spans - first : Block::kSpans;
    if (round > 0) wait(&left[stage], (round - 1) & 1);  // by all that this block copies to
    if (warp == 0) arrive_expecting(&arrived[stage], here * Block::kSpanBytes);
    std::byte* target = space + stage * Block::kBytes;
    copy_bulk_to(target + tile_part * Block::kTile, weights, here * kWeightSpan<kStorage>, &arrived[stage], along_rows);
    std::byte* row_target = target + Block::kWeights + row_part * Block::kRowTile;
    copy_bulk_to(row_target, inputs, here * kInputSpan<kProduct>, &arrived[stage], along_outputs);
    copy_bulk_to(row_target + Block::kRowTile, inputs + row_stride, here * kInputSpan<kProduct>, &arrived[stage],
                 along_outputs);
    weights += Block::kTile;
    inputs += Block::kRowTile;
  }
}

/// Each warp multiplies its tile of outputs with all rows of the block.
template <Storage kStorage, Product kProduct>
__device__ inline void multiply_spans(const MatmulLaunch& args, const std::byte* space, std::uint64_t* arrived,
                                      std::uint64_t* left) {
  using Block = Stage<kStorage, kProduct>;
  const WeightView& w = args.weight;
  const int warp = threadIdx.x / 32;
  const int spans = static_cast<int>(round_up_to(w.cols, kSpanCols) / kSpanCols);
  const int each = kProduct == Product::bytes ? spans : static_cast<int>(part_spans(w.cols, 0));
  Sum<kProduct> sums[kRowTiles][4] = {}, totals[kRowTiles][4] = {};
  SpanOperands<kStorage, kProduct> operand[3];
  constexpr int kRound = kStages * Block::kSpans;  // spans after which stages and operands are the same again
  static_assert(kRound % 3 == 0);
  const auto load = [&](int span, int place, SpanOperands<kStorage, kProduct>& a) {
    const int stage = place / Block::kSpans % kStages;
    if (place % Block::kSpans == 0) wait(&arrived[stage], span / kRound & 1);
    a.load(space + stage * Block::kBytes + warp * Block::kTile + place % Block::kSpans * kWeightSpan<kStorage>);
  };
  // This block, and its neighbours along rows and along outputs, copy here.
  const std::uint32_t here = cluster_rank(), copier = here ^ threadIdx.x % 128;
  const auto leave = [&](int stage) {
    if (threadIdx.x % 128 < 3) arrive(&left[stage], copier);
  };
  int left_in_part = each;
  bool all_left = true;  // stages before this one
  // The next span's weights come to registers while this one's are multiplied and those of the last may be, so that
  // products always wait to be begun. Registers of the span before the last are free.
  const auto take = [&](int span, int place, const SpanOperands<kStorage, kProduct>& now,
                        SpanOperands<kStorage, kProduct>& next) {
    const int stage = place / Block::kSpans;
    const std::byte* inputs =
        space + stage * Block::kBytes + Block::kWeights + place % Block::kSpans * kInputSpan<kProduct>;
    fence_products();
#pragma unroll
    for (int step = 0; step < SpanOperands<kStorage, kProduct>::kSteps; ++step) {
      begin_product<kProduct>(sums, now.a[step], inputs_at<Block::kRowTile>(inputs + step * 256));
    }
    commit_products();
    if (span + 1 < spans) load(span + 1, place + 1, next);
    wait_products<1>();
    if (place % Block::kSpans == 0 && !all_left) leave(stage == 0 ? kStages - 1 : stage - 1);
    all_left = false;
    if (--left_in_part > 0 && span + 1 < spans) return;
    wait_products<0>();
    if (place % Block::kSpans + 1 == Block::kSpans) {
      leave(stage);
      all_left = true;
    }
    left_in_part = each;
    close_part<kProduct>(sums, totals);
  };
  load(0, 0, operand[0]);
  for (int first = 0; first < spans; first += kRound) {
#pragma unroll
    for (int place = 0; place < kRound; ++place) {
      if (first + place >= spans) break;
      take(first + place, place, operand[place % 3], operand[(place + 1) % 3]);
    }
  }
  store_totals<kStorage, kProduct>(args, (std::int64_t{blockIdx.y} * kGroups * kGroupTiles + warp),
                                   std::int64_t{blockIdx.x} * kRowTiles, totals);
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <Storage kStorage, Product kProduct>
__global__ void __launch_bounds__(kThreads, 1) matmul_wgmma_kernel(MatmulLaunch args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(128) uint4 stages[];
  __shared__ std::uint64_t arrived[kStages], left[kStages];
  auto* const space = reinterpret_cast<std::byte*>(stages);
  const int warp = threadIdx.x / 32;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      init_barrier(&arrived[s], 1);
      init_barrier(&left[s], 3 * kGroups);  // of this block and two neighbours
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  sync_cluster();
  let_next_start();
  wait_for_inputs();

  if (warp >= kGroups * 4) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCopyRegisters));
    copy_spans<kStorage, kProduct>(args, space, arrived, left);
    __syncwarp();  // one thread of each warp copies
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kMultiplyRegisters));
    multiply_spans<kStorage, kProduct>(args, space, arrived, left);
  }
  sync_cluster();  // nobody leaves while others may copy to its memory or arrive at its barriers
#endif
}

template <Storage kStorage, Product kProduct>
cudaError_t launch_wgmma(const MatmulLaunch& launch, cudaStream_t stream) {
  constexpr int kShared = kStages * Stage<kStorage, kProduct>::kBytes;
  auto* kernel = matmul_wgmma_kernel<kStorage, kProduct>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  if (error != cudaSuccess) return error;
  constexpr std::int64_t kOutputs = kGroups * kGroupTiles * kTileRows, kRows = kRowTiles * 8;
  const auto blocks = [](std::int64_t count, std::int64_t each) {
    return static_cast<unsigned>(round_up_to((count + each - 1) / each, kCluster));
  };
  const dim3 grid(blocks(launch.rows, kRows), blocks(launch.weight.rows, kOutputs));
  return start(kernel, grid, kThreads, kShared, stream, launch, dim3(kCluster, kCluster));
}

}  // namespace

cudaError_t matmul_wgmma(const MatmulLaunch& launch, cudaStream_t stream) {
  return with_wgmma_product(
      launch, [&]<Storage kStorage, Product kProduct>() { return launch_wgmma<kStorage, kProduct>(launch, stream); });
}

}  // namespace millrace::cuda
