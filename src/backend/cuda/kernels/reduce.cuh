// Sums and maxima over a warp or a block, in an order that depends on the number of threads alone.
#pragma once

namespace millrace::cuda {

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(0xffffffffu, value, mask);
  return value;
}

__device__ inline float warp_max(float value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, mask));
  return value;
}

/// All threads of the block take part and get the result; kThreads of them, whole warps.
template <int kThreads>
__device__ inline float block_sum(float value) {
  constexpr int kWarps = kThreads / 32;
  __shared__ float parts[kWarps];
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) total += parts[warp];
  return total;
}

template <int kThreads>
__device__ inline float block_max(float value) {
  constexpr int kWarps = kThreads / 32;
  __shared__ float parts[kWarps];
  value = warp_max(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  float largest = parts[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) largest = fmaxf(largest, parts[warp]);
  return largest;
}

__device__ inline unsigned long long warp_total(unsigned long long value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(0xffffffffu, value, mask);
  return value;
}

template <int kThreads>
__device__ inline unsigned long long block_total(unsigned long long value) {
  constexpr int kWarps = kThreads / 32;
  __shared__ unsigned long long parts[kWarps];
  value = warp_total(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  unsigned long long total = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) total += parts[warp];
  return total;
}

template <int kThreads>
__device__ inline int block_min(int value) {
  constexpr int kWarps = kThreads / 32;
  __shared__ int parts[kWarps];
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value = min(value, __shfl_xor_sync(0xffffffffu, value, mask));
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  int smallest = parts[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) smallest = min(smallest, parts[warp]);
  return smallest;
}

}  // namespace millrace::cuda
