// Kernels that do nothing but reach a limit of the device.
#include "backend/cuda/kernels/launch.h"
#include "backend/cuda/kernels/mma.cuh"
#include "backend/cuda/kernels/wgmma.cuh"

namespace millrace::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kRowTiles = 16;  // of 8 rows, of a warp group's instruction

__global__ void read_kernel(const uint4* memory, std::int64_t count, std::uint32_t* sink) {
  std::uint32_t sum = 0;
  const std::int64_t step = std::int64_t{gridDim.x} * kThreads;
  constexpr int kLoads = 8;  // on their way at a time
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += kLoads * step) {
    uint4 values[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) values[j] = i + j * step < count ? __ldcs(memory + i + j * step) : uint4{};
#pragma unroll
    for (int j = 0; j < kLoads; ++j) sum += values[j].x ^ values[j].y ^ values[j].z ^ values[j].w;
  }
  if (sum == 0x12345678u) *sink = sum;  // so that the loads are needed
}

/// Chains of products that do not wait for each other, as many as hide an instruction's latency.
template <typename Sum, bool kMatrix>
__global__ void multiply_kernel(std::int64_t rounds, std::uint32_t* sink) {
  constexpr int kChains = 8;
  Sum sums[kChains][4] = {};
  std::uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = threadIdx.x * 2654435761u + i;
  b[0] = a[0] ^ a[1], b[1] = a[2] ^ a[3];
  const float x = static_cast<float>(threadIdx.x) * 0x1p-20f, y = 1.0f - x;
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma unroll
    for (int c = 0; c < kChains; ++c) {
      if constexpr (kMatrix) {
        multiply_add(sums[c], a, b, false);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[c][i] = fmaf(sums[c][i], y, x);
      }
    }
  }
  Sum all = 0;
  for (int c = 0; c < kChains; ++c) all += sums[c][0] + sums[c][1] + sums[c][2] + sums[c][3];
  if (all == Sum{12345}) *sink = 1;
}

/// The same by the instructions of compute capability 9.0, with the second factor in shared memory.
template <Product kProduct>
__global__ void __launch_bounds__(kThreads) multiply_wgmma_kernel(std::int64_t rounds, std::uint32_t* sink) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(128) uint4 inputs[];
  for (int i = threadIdx.x; i < kRowTiles * 64; i += kThreads)
    inputs[i] = make_uint4(0x3f803f80u + i, 0x3e803e80u, 0x3f003f00u, 0x3ec03ec0u);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  Sum<kProduct> sums[kRowTiles][4] = {};
  const std::uint32_t a[4] = {0x3f803f80u + threadIdx.x, 0x3e803e80u, 0x3f003f00u, 0x3ec03ec0u};
  const std::uint64_t b = inputs_at<kInputSpan<kProduct>>(reinterpret_cast<const std::byte*>(inputs));
  for (std::int64_t round = 0; round < rounds; ++round) {
    fence_products();
#pragma unroll
    for (int i = 0; i < 8; ++i) begin_product<kProduct>(sums, a, b);
    commit_products();
    wait_products<0>();
  }
  Sum<kProduct> all = 0;
  for (int n = 0; n < kRowTiles; ++n) all += sums[n][0] + sums[n][1] + sums[n][2] + sums[n][3];
  if (all == Sum<kProduct>{12345}) *sink = 1;
#endif
}

constexpr int kWgmmaShared = kRowTiles * 1024;

}  // namespace

cudaError_t read_memory(const void* memory, std::int64_t bytes, std::uint32_t* sink, std::int32_t multiprocessors,
                        cudaStream_t stream) {
  read_kernel<<<static_cast<unsigned>(8 * multiprocessors), kThreads, 0, stream>>>(static_cast<const uint4*>(memory),
                                                                                   bytes / 16, sink);
  return cudaGetLastError();
}

double multiply_operations(MultiplyKind kind, std::int64_t rounds, std::int32_t multiprocessors) {
  if (kind >= MultiplyKind::bf16_wgmma) {  // a block has two warp groups
    const double inputs = kind == MultiplyKind::bf16_wgmma ? 16 : 32;
    return 2.0 * multiprocessors * 8 * static_cast<double>(rounds) * 64 * kRowTiles * 8 * inputs * 2;
  }
  const double warps = 4.0 * multiprocessors * kThreads / 32;
  const double each = kind == MultiplyKind::f32    ? 32 * 4 * 2
                      : kind == MultiplyKind::bf16 ? 16 * 8 * 16 * 2
                                                   : 16 * 8 * 32 * 2;
  return warps * 8 * static_cast<double>(rounds) * each;
}

cudaError_t reach_operations(MultiplyKind kind, std::int64_t rounds, std::uint32_t* sink, std::int32_t multiprocessors,
                             cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(4 * multiprocessors);
  const auto start_wgmma = [&]<Product kProduct>() {
    multiply_wgmma_kernel<kProduct>
        <<<static_cast<unsigned>(multiprocessors), kThreads, kWgmmaShared, stream>>>(rounds, sink);
  };
  if (kind == MultiplyKind::bf16_wgmma) {
    start_wgmma.operator()<Product::bf16>();
  } else if (kind == MultiplyKind::e4m3_wgmma) {
    start_wgmma.operator()<Product::e4m3>();
  } else if (kind == MultiplyKind::int8_wgmma) {
    start_wgmma.operator()<Product::bytes>();
  } else if (kind == MultiplyKind::f32) {
    multiply_kernel<float, false><<<blocks, kThreads, 0, stream>>>(rounds, sink);
  } else if (kind == MultiplyKind::bf16) {
    multiply_kernel<float, true><<<blocks, kThreads, 0, stream>>>(rounds, sink);
  } else {
    multiply_kernel<std::int32_t, true><<<blocks, kThreads, 0, stream>>>(rounds, sink);
  }
  return cudaGetLastError();
}

}  // namespace millrace::cuda
