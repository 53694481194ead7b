// Products of any weight with inputs in f32, sums in f32: what is computed where nothing may be rounded, and wherever
// matrix instructions do not serve. A warp has an output and some rows of inputs; its threads take eights of inputs in
// turn and add up their parts at the end, so that a result depends on the number of inputs alone.
#include "backend/cuda/kernels/decode.cuh"
#include "backend/cuda/kernels/grid.cuh"
#include "backend/cuda/kernels/launch.h"
#include "backend/cuda/kernels/reduce.cuh"

namespace millrace::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

/// sums[r] += weight . x[r], this thread's share.
template <Storage kStorage, int kRows>
__device__ void add_products(const WeightView& weight, std::int64_t output, const float* x, std::int64_t x_stride,
                             int rows, float (&sums)[kRows]) {
  const std::int64_t cols = weight.cols;
  for (std::int64_t eight = threadIdx.x % 32; eight * 8 < cols; eight += 32) {
    float w[8];
    load_eight<kStorage>(weight, output, eight, w);
    const std::int64_t left = cols - eight * 8;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      const float* inputs = x + r * x_stride + eight * 8;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (i < left) sums[r] = fmaf(inputs[i], w[i], sums[r]);
      }
    }
  }
}

template <Storage kStorage, int kRows>
__global__ void dot_kernel(MatmulLaunch args) {
  let_next_start();
  wait_for_inputs();
  const std::int64_t output = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (output >= args.weight.rows) return;
  const std::int64_t first = std::int64_t{blockIdx.y} * kRows;
  const int rows = args.rows - first < kRows ? static_cast<int>(args.rows - first) : kRows;
  float sums[kRows] = {};
  add_products<kStorage, kRows>(args.weight, output, args.x + first * args.x_stride, args.x_stride, rows, sums);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float sum = warp_sum(sums[r]);
    if (r < rows && threadIdx.x % 32 == 0)
      args.out[(first + r) * args.out_stride + output] = args.bias != nullptr ? sum + args.bias[output] : sum;
  }
}

template <Storage kStorage>
__global__ void dot_experts_kernel(ExpertsLaunch args) {
  let_next_start();
  wait_for_inputs();
  const std::int64_t output = std::int64_t{blockIdx.y} * kWarps + threadIdx.x / 32, pair = blockIdx.x;
  if (output >= args.like.rows) return;
  const std::int32_t expert = args.choice[pair];
  float sums[1] = {};
  add_products<kStorage, 1>(args.weights[expert], output, args.x + pair / args.x_rows * args.x_stride, 0, 1, sums);
  const float sum = warp_sum(sums[0]);
  const float* bias = args.biases[expert];
  if (threadIdx.x % 32 == 0) args.out[pair * args.out_stride + output] = bias != nullptr ? sum + bias[output] : sum;
}

unsigned output_blocks(std::int64_t rows) {
  return static_cast<unsigned>((rows + kWarps - 1) / kWarps);
}

}  // namespace

cudaError_t dot(const MatmulLaunch& launch, cudaStream_t stream) {
  constexpr int kRows = 8;
  return with_storage(launch.weight.storage, [&]<Storage kStorage>() {
    if (launch.rows == 1) {
      return start(dot_kernel<kStorage, 1>, dim3(output_blocks(launch.weight.rows)), kThreads, 0, stream, launch);
    }
    const dim3 grid(output_blocks(launch.weight.rows), static_cast<unsigned>((launch.rows + kRows - 1) / kRows));
    return start(dot_kernel<kStorage, kRows>, grid, kThreads, 0, stream, launch);
  });
}

cudaError_t dot_experts(const ExpertsLaunch& launch, cudaStream_t stream) {
  return with_storage(launch.like.storage, [&]<Storage kStorage>() {
    const dim3 grid(static_cast<unsigned>(launch.pairs), output_blocks(launch.like.rows));
    return start(dot_experts_kernel<kStorage>, grid, kThreads, 0, stream, launch);
  });
}

}  // namespace millrace::cuda
