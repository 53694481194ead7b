// Attention for every format of keys and values with nothing rounded: a block for a row and kv head folds chunks of
// positions in ascending order, for all query heads that share them. attend_mma.cu is the fast one.
#include <cmath>

#include "backend/cuda/kernels/decode.cuh"
#include "backend/cuda/kernels/grid.cuh"
#include "backend/cuda/kernels/launch.h"
#include "backend/cuda/kernels/reduce.cuh"

namespace millrace::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kChunk = 64;

template <KvFormat kFormat>
__device__ float element(const std::byte* slab, std::int64_t index) {
  if constexpr (kFormat == KvFormat::f32) {
    return reinterpret_cast<const float*>(slab)[index];
  } else if constexpr (kFormat == KvFormat::bf16) {
    return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(slab)[index]);
  } else if constexpr (kFormat == KvFormat::int8) {
    return static_cast<float>(reinterpret_cast<const std::int8_t*>(slab)[index]);
  } else {
    return e4m3_value(reinterpret_cast<const std::uint8_t*>(slab)[index]);
  }
}

/// Shared memory: q and the sums of values [group, head_dim] each, weights [group, kChunk], and for each of the group
/// the running maximum, the running sum and what earlier sums are multiplied with.
std::size_t shared_floats(const AttendLaunch& args) {
  const auto group = static_cast<std::size_t>(args.heads / args.kv_heads);
  return group * (2 * static_cast<std::size_t>(args.head_dim) + kChunk + 3);
}

template <KvFormat kFormat>
__global__ void attend_exact_kernel(AttendLaunch args) {
  let_next_start();
  wait_for_inputs();
  extern __shared__ float space[];
  const std::int64_t row = blockIdx.x;
  const std::int32_t position = args.row_position[row];
  const std::int32_t begin = args.window > 0 && position >= args.window ? position - args.window + 1 : 0;
  const std::int32_t group = args.heads / args.kv_heads, kv_head = blockIdx.y, dim = args.head_dim;
  float *q = space, *sums = q + group * dim, *weights = sums + group * dim, *largest = weights + group * kChunk,
        *total = largest + group, *factor = total + group;
  const KvView& kv = args.kv;
  const std::int32_t* table = args.page_tables + args.table_offsets[args.row_sequence[row]];
  const std::int64_t head_slots = std::int64_t{kv_head} * kv.page_tokens;
  constexpr std::int64_t kBytes = kFormat == KvFormat::f32 ? 4 : kFormat == KvFormat::bf16 ? 2 : 1;
  constexpr bool kScaled = kFormat == KvFormat::int8 || kFormat == KvFormat::fp8_e4m3;

  for (std::int32_t i = threadIdx.x; i < group * dim; i += kThreads) {
    q[i] = args.q[row * args.q_stride + kv_head * group * dim + i];
    sums[i] = 0.0f;
  }
  for (std::int32_t g = threadIdx.x; g < group; g += kThreads) {
    largest[g] = args.sinks != nullptr ? args.sinks[kv_head * group + g] : -INFINITY;
    total[g] = args.sinks != nullptr ? 1.0f : 0.0f;
  }
  for (std::int32_t chunk = begin / kChunk * kChunk; chunk <= position; chunk += kChunk) {
    __syncthreads();
    for (std::int32_t i = threadIdx.x; i < group * kChunk; i += kThreads) {
      const std::int32_t g = i / kChunk, t = chunk + i % kChunk;
      float score = -INFINITY;
      if (t >= begin && t <= position) {
        const std::byte* page = kv.pages + static_cast<std::size_t>(table[t / kv.page_tokens]) * kv.page_bytes;
        const std::int64_t slot = t % kv.page_tokens;
        const std::byte* keys = page + kv.key_offset + head_slots * dim * kBytes;
        float dot = 0.0f;
        for (std::int32_t d = 0; d < dim; ++d)
          dot = fmaf(q[g * dim + d], element<kFormat>(keys, std::int64_t{d} * kv.page_tokens + slot), dot);
        if constexpr (kScaled) dot *= reinterpret_cast<const float*>(page + kv.key_scale_offset)[head_slots + slot];
        score = dot * args.scale;
        if (args.softcap != 0.0f) score = args.softcap * tanhf(score / args.softcap);
      }
      weights[i] = score;
    }
    __syncthreads();
    for (std::int32_t g = threadIdx.x / 32; g < group; g += kThreads / 32) {
      const int lane = threadIdx.x % 32;
      const float a = weights[g * kChunk + lane], b = weights[g * kChunk + lane + 32];
      const float now = fmaxf(largest[g], warp_max(fmaxf(a, b)));
      const float ea = expf(a - now), eb = expf(b - now), sum = warp_sum(ea + eb);
      weights[g * kChunk + lane] = ea;
      weights[g * kChunk + lane + 32] = eb;
      __syncwarp();
      if (lane == 0) {
        factor[g] = expf(largest[g] - now);
        total[g] = fmaf(total[g], factor[g], sum);
        largest[g] = now;
      }
    }
    __syncthreads();
    const std::int32_t first = begin > chunk ? begin - chunk : 0,
                       count = position - chunk + 1 < kChunk ? position - chunk + 1 : kChunk;
    for (std::int32_t i = threadIdx.x; i < group * dim; i += kThreads) {
      const std::int32_t g = i / dim, d = i % dim;
      float sum = sums[i] * factor[g];
      for (std::int32_t j = first; j < count; ++j) {
        const std::int32_t t = chunk + j;
        const std::byte* page = kv.pages + static_cast<std::size_t>(table[t / kv.page_tokens]) * kv.page_bytes;
        const std::int64_t slot = head_slots + t % kv.page_tokens;
        float weight = weights[g * kChunk + j];
        if constexpr (kScaled) weight *= reinterpret_cast<const float*>(page + kv.value_scale_offset)[slot];
        sum = fmaf(weight, element<kFormat>(page + kv.value_offset, slot * dim + d), sum);
      }
      sums[i] = sum;
    }
  }
  __syncthreads();
  for (std::int32_t i = threadIdx.x; i < group * dim; i += kThreads) {
    args.out[row * args.heads * dim + kv_head * group * dim + i] = sums[i] / total[i / dim];
  }
}

template <KvFormat kFormat>
cudaError_t launch_exact(const AttendLaunch& launch, cudaStream_t stream) {
  const std::size_t bytes = shared_floats(launch) * sizeof(float);
  if (bytes > std::size_t{48} << 10) {
    const cudaError_t error = cudaFuncSetAttribute(
        attend_exact_kernel<kFormat>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (error != cudaSuccess) return error;
  }
  const dim3 grid(static_cast<unsigned>(launch.rows), static_cast<unsigned>(launch.kv_heads));
  return start(attend_exact_kernel<kFormat>, grid, kThreads, bytes, stream, launch);
}

}  // namespace

cudaError_t attend_exact(const AttendLaunch& launch, cudaStream_t stream) {
  switch (launch.kv.format) {
    case KvFormat::f32:
      return launch_exact<KvFormat::f32>(launch, stream);
    case KvFormat::bf16:
      return launch_exact<KvFormat::bf16>(launch, stream);
    case KvFormat::int8:
      return launch_exact<KvFormat::int8>(launch, stream);
    case KvFormat::fp8_e4m3:
      break;
  }
  return launch_exact<KvFormat::fp8_e4m3>(launch, stream);
}

}  // namespace millrace::cuda
