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
constexpr int kRowTiles = kWgmmaRowTiles;    // tiles of 8 rows
constexpr int kCluster = 2;                  // blocks along rows, and along outputs
constexpr int kCopiedTiles = kGroups * kGroupTiles / kCluster, kCopiedRowTiles = kRowTiles / kCluster;
constexpr int kThreads = (kGroups + 1) * 128;                 // one group more for the copies
constexpr int kCopyRegisters = 40, kMultiplyRegisters = 232;  // of a thread: 384 threads share 65,536
constexpr int kStages = 6;

/// What a stage of shared memory holds: a span of the block's weights, then of its inputs.
template <Storage kStorage, Product kProduct>
struct Stage {
  static constexpr int kWeights = kGroups * kGroupTiles * kWeightSpan<kStorage>;
  static constexpr int kBytes = kWeights + kRowTiles * kInputSpan<kProduct>;  // of what arrives
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// A span's operands of a warp: four steps of 16 inputs, or two of 32 bytes.
template <Storage kStorage, Product kProduct>
struct SpanOperands {
  static constexpr int kSteps = kProduct == Product::bytes ? 2 : 4;
  std::uint32_t a[kSteps][4];

  __device__ void load(const std::byte* span) {
    RawSpan<kStorage> raw;
    raw.load(span);
    std::uint32_t block[2][4];
    operands<kStorage, kProduct, 0>(raw, 0, 0, block);
    place(0, block);
    operands<kStorage, kProduct, 1>(raw, 0, 0, block);
    place(1, block);
  }

 private:
  __device__ void place(int block_index, const std::uint32_t (&block)[2][4]) {
#pragma unroll
    for (int step = 0; step < kSteps / 2; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[block_index * (kSteps / 2) + step][i] = block[step][i];
    }
  }
};

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
  for (int span = 0; span < spans; ++span) {
    const int stage = span % kStages, round = span / kStages;
    if (round > 0) wait(&left[stage], (round - 1) & 1);  // by all that this block copies to
    if (warp == 0) arrive_expecting(&arrived[stage], Block::kBytes);
    std::byte* target = space + stage * Block::kBytes;
    copy_bulk_to(target + tile_part * kWeightSpan<kStorage>, weights, kWeightSpan<kStorage>, &arrived[stage],
                 along_rows);
    std::byte* row_target = target + Block::kWeights + row_part * kInputSpan<kProduct>;
    copy_bulk_to(row_target, inputs, kInputSpan<kProduct>, &arrived[stage], along_outputs);
    copy_bulk_to(row_target + kInputSpan<kProduct>, inputs + row_stride, kInputSpan<kProduct>, &arrived[stage],
                 along_outputs);
    weights += kWeightSpan<kStorage>;
    inputs += kInputSpan<kProduct>;
  }
}

/// Each warp multiplies its tile of outputs with all rows of the block.
template <Storage kStorage, Product kProduct>
__device__ inline void multiply_spans(const MatmulLaunch& args, const std::byte* space, std::uint64_t* arrived,
                                      std::uint64_t* left) {
  using Block = Stage<kStorage, kProduct>;
  const WeightView& w = args.weight;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int spans = static_cast<int>(round_up_to(w.cols, kSpanCols) / kSpanCols);
  const int each = kProduct == Product::bytes ? spans : static_cast<int>(part_spans(w.cols, 0));
  Sum<kProduct> sums[kRowTiles][4] = {}, totals[kRowTiles][4] = {};
  SpanOperands<kStorage, kProduct> operand[2];
  const auto load = [&](int span, SpanOperands<kStorage, kProduct>& a) {
    wait(&arrived[span % kStages], span / kStages & 1);
    a.load(space + span % kStages * Block::kBytes + warp * kWeightSpan<kStorage>);
  };
  // This block, and its neighbours along rows and along outputs, copy here.
  const std::uint32_t here = cluster_rank(), copier = here ^ threadIdx.x % 128;
  int left_in_part = each;
  // The next span's weights come to registers while this one's are multiplied. Nothing else may write registers that
  // products read while any is under way, so those are waited for each time; the other warp group fills the gap.
  const auto take = [&](int span, const SpanOperands<kStorage, kProduct>& now, SpanOperands<kStorage, kProduct>& next) {
    const std::byte* inputs = space + span % kStages * Block::kBytes + Block::kWeights;
    fence_products();
#pragma unroll
    for (int step = 0; step < SpanOperands<kStorage, kProduct>::kSteps; ++step) {
      begin_product<kProduct>(sums, now.a[step], inputs_at<kProduct>(inputs + step * 256));
    }
    commit_products();
    if (span + 1 < spans) load(span + 1, next);
    wait_products<0>();
    if (threadIdx.x % 128 < 3) arrive(&left[span % kStages], copier);
    if (--left_in_part > 0 && span + 1 < spans) return;
    left_in_part = each;
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        totals[n][i] += sums[n][i];
        sums[n][i] = 0;
      }
    }
  };
  load(0, operand[0]);
  for (int span = 0; span < spans; span += 2) {
    take(span, operand[0], operand[1]);
    if (span + 1 < spans) take(span + 1, operand[1], operand[0]);
  }

  const int quad = lane % 4, line = lane / 4;
#pragma unroll
  for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int64_t output =
                             (std::int64_t{blockIdx.y} * kGroups * kGroupTiles + warp) * kTileRows + i / 2 * 8 + line,
                         row = (std::int64_t{blockIdx.x} * kRowTiles + n) * 8 + quad * 2 + i % 2;
      if (output < w.rows && row < args.rows) store_total<kStorage, kProduct, false>(args, output, row, totals[n][i]);
    }
  }
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
  switch (launch.weight.storage) {
    case Storage::bf16:
      return launch_wgmma<Storage::bf16, Product::bf16>(launch, stream);
    case Storage::int8:
      return launch.rounding == Rounding::int8 ? launch_wgmma<Storage::int8, Product::bytes>(launch, stream)
                                               : launch_wgmma<Storage::int8, Product::bf16>(launch, stream);
    case Storage::e4m3:
      return launch.rounding == Rounding::e4m3 ? launch_wgmma<Storage::e4m3, Product::half>(launch, stream)
                                               : launch_wgmma<Storage::e4m3, Product::bf16>(launch, stream);
    default:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace millrace::cuda
