// Products for many rows, as prompts have them: tiles of weights and inputs come to shared memory by asynchronous
// copies, some spans ahead, and eight warps multiply from there. The sums are matmul_few()'s to the bit.
#include "backend/cuda/kernels/grid.cuh"
#include "backend/cuda/kernels/products.cuh"

namespace millrace::cuda {

namespace {

constexpr int kWarpRows = 2, kWarpCols = 4;  // warps along outputs, along rows of inputs
constexpr int kThreads = kWarpRows * kWarpCols * 32;
constexpr int kStages = 4;

__device__ inline void copy_async(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  const auto at = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(global) : "memory");
#endif
}

__device__ inline void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int kLeft>
__device__ inline void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

/// A block's share: kTiles tiles of 16 outputs by kRowTiles tiles of 8 rows.
template <Storage kStorage, Product kProduct, int kM, int kN>
struct Shape {
  static constexpr int kTiles = kWarpRows * kM, kRowTiles = kWarpCols * kN;
  static constexpr int kWeights = kTiles * kWeightSpan<kStorage>, kInputs = kRowTiles * kInputSpan<kProduct>;
  static constexpr int kStage = kWeights + kInputs;
};

template <Storage kStorage, Product kProduct, int kM, int kN, bool kGroups>
__global__ void __launch_bounds__(kThreads, 1) matmul_many_kernel(MatmulLaunch args) {
  let_next_start();
  wait_for_inputs();
  extern __shared__ uint4 stages[];
  using Block = Shape<kStorage, kProduct, kM, kN>;
  using Sums = PartSums<kStorage, kProduct, kM, kN, kGroups>;
  using Value = typename Sums::Value;
  const WeightView& w = args.weight;
  auto* const space = reinterpret_cast<std::byte*>(stages);
  const int warp = threadIdx.x / 32, warp_row = warp / kWarpCols, warp_col = warp % kWarpCols;
  const std::int64_t spans = round_up_to(w.cols, kSpanCols) / kSpanCols, each = part_spans(w.cols, w.group);
  // Blocks that start together have the same weights, which then come from memory once.
  const std::int64_t first_tile = std::int64_t{blockIdx.y} * Block::kTiles,
                     first_row_tile = std::int64_t{blockIdx.x} * Block::kRowTiles;
  const OutputTiles<kM> tiles(w, first_tile + warp_row * kM);
  const std::int64_t warp_row_tile = first_row_tile + warp_col * kN;

  const auto start_copies = [&](std::int64_t span) {
    if (span < spans) {
      std::byte* stage = space + span % kStages * Block::kStage;
      constexpr int kWeightChunks = kWeightSpan<kStorage> / 16, kInputChunks = kInputSpan<kProduct> / 16;
#pragma unroll
      for (int i = 0; i < Block::kWeights / 16 / kThreads; ++i) {
        const int chunk = i * kThreads + threadIdx.x;
        const std::int64_t last = (w.rows + kTileRows - 1) / kTileRows - 1;
        const std::int64_t wanted = first_tile + chunk / kWeightChunks, tile = wanted < last ? wanted : last;
        copy_async(stage + chunk * 16,
                   w.data + (tile * spans + span) * kWeightSpan<kStorage> + chunk % kWeightChunks * 16);
      }
#pragma unroll
      for (int i = 0; i < Block::kInputs / 16 / kThreads; ++i) {
        const int chunk = i * kThreads + threadIdx.x;
        const std::int64_t tile = first_row_tile + chunk / kInputChunks;
        copy_async(stage + Block::kWeights + chunk * 16, static_cast<const std::byte*>(args.tiles) +
                                                             (tile * spans + span) * kInputSpan<kProduct> +
                                                             chunk % kInputChunks * 16);
      }
    }
    commit_copies();
  };

  Value totals[kM][kN][4] = {};
  Sums sums;
  for (int stage = 0; stage < kStages - 1; ++stage) start_copies(stage);
  for (std::int64_t span = 0; span < spans; ++span) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // the span is there for all, and all have left the one that the next copies go over
    start_copies(span + kStages - 1);
    const std::byte* stage = space + span % kStages * Block::kStage;
    const std::byte* inputs = stage + Block::kWeights + warp_col * kN * kInputSpan<kProduct>;
    std::uint32_t b[2][kN][2][2];
#pragma unroll
    for (int block = 0; block < 2; ++block) {
#pragma unroll
      for (int n = 0; n < kN; ++n) load_inputs<kProduct>(inputs, n * 2 + block, b[block][n]);
    }
    RawSpan<kStorage> raw[kM];
#pragma unroll
    for (int m = 0; m < kM; ++m) raw[m].load(stage + (warp_row * kM + m) * kWeightSpan<kStorage>);
    sums.template take_block<0>(args, tiles, warp_row_tile, raw, b[0], span * 2);
    sums.template take_block<1>(args, tiles, warp_row_tile, raw, b[1], span * 2 + 1);
    if ((span + 1) % each == 0 || span + 1 == spans) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int n = 0; n < kN; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) totals[m][n][i] += sums.value(m, n, i);
        }
      }
      sums = {};
    }
  }

  const int quad = threadIdx.x % 4, line = threadIdx.x % 32 / 4;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::int64_t output = (first_tile + warp_row * kM + m) * kTileRows + i / 2 * 8 + line,
                           row = (warp_row_tile + n) * 8 + quad * 2 + i % 2;
        if (output < w.rows && row < args.rows)
          store_total<kStorage, kProduct, kGroups>(args, output, row, totals[m][n][i]);
      }
    }
  }
}

template <Storage kStorage, Product kProduct, bool kGroups>
cudaError_t launch_many(const MatmulLaunch& launch, cudaStream_t stream) {
  constexpr int kM = 4, kN = kGroups ? 2 : 4;  // with groups there are three sums of everything
  using Block = Shape<kStorage, kProduct, kM, kN>;
  constexpr int kShared = kStages * Block::kStage;
  auto* kernel = matmul_many_kernel<kStorage, kProduct, kM, kN, kGroups>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  if (error != cudaSuccess) return error;
  const std::int64_t output_tiles = (launch.weight.rows + kTileRows - 1) / kTileRows, row_tiles = (launch.rows + 7) / 8;
  const dim3 grid(static_cast<unsigned>((row_tiles + Block::kRowTiles - 1) / Block::kRowTiles),
                  static_cast<unsigned>((output_tiles + Block::kTiles - 1) / Block::kTiles));
  return start(kernel, grid, kThreads, kShared, stream, launch);
}

}  // namespace

cudaError_t matmul_many(const MatmulLaunch& launch, cudaStream_t stream) {
  return with_product(launch, [&]<Storage kStorage, Product kProduct, bool kGroups>() {
    return launch_many<kStorage, kProduct, kGroups>(launch, stream);
  });
}

}  // namespace millrace::cuda
