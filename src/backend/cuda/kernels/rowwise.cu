// Operations that are no products: norms, rotations, activations, and what moves rows.
#include <cmath>

#include "backend/cuda/kernels/activate.cuh"
#include "backend/cuda/kernels/decode.cuh"
#include "backend/cuda/kernels/grid.cuh"
#include "backend/cuda/kernels/launch.h"
#include "backend/cuda/kernels/reduce.cuh"
#include "backend/cuda/kernels/round.cuh"

namespace millrace::cuda {

namespace {

constexpr int kThreads = 256;
constexpr std::int32_t kNormPerHead = 1, kNormAllHeads = 2;  // NormScope

unsigned blocks_of(std::int64_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}

template <Storage kStorage>
__global__ void embed_kernel(EmbedLaunch args) {
  let_next_start();
  wait_for_inputs();
  const std::int64_t row = blockIdx.x, token = args.batch.token_ids[row] - args.first_row, width = args.table.cols;
  if (token < 0 || token >= args.table.rows) return;  // of another segment
  for (std::int64_t eight = threadIdx.x; eight * 8 < width; eight += kThreads) {
    float values[8];
    load_eight<kStorage>(args.table, token, eight, values);
    for (int i = 0; i < 8 && eight * 8 + i < width; ++i) {
      const std::int64_t column = args.order != nullptr ? args.order[eight * 8 + i] : eight * 8 + i;
      args.out[row * width + column] = values[i] * args.scale;
    }
  }
}

__device__ float sum_of_squares(const float* x, std::int64_t width) {
  float sum = 0.0f;
  for (std::int64_t i = threadIdx.x; i < width; i += kThreads) sum = fmaf(x[i], x[i], sum);
  return block_sum<kThreads>(sum);
}

__device__ float norm_scale(float sum, std::int64_t width, float eps) {
  return 1.0f / sqrtf(sum / static_cast<float>(width) + eps);
}

/// A block has a row in registers, kEach eights a thread. With tiles for a product there are blocks for the rows that
/// fill the last tile up.
template <int kEach>
__global__ void __launch_bounds__(kRowThreads) residual_norm_kernel(NormLaunch args) {
  let_next_start();
  wait_for_inputs();
  const std::int64_t width = args.width, row = blockIdx.x;
  float values[kEach][8] = {};
  if (row >= args.rows) return round_row(args.round, row, values);
  float* h = args.h + row * width;
  const bool whole = whole_eights(args.h, width, width);
#pragma unroll
  for (int i = 0; i < kEach; ++i) load_numbers(h, i * kRowThreads + threadIdx.x, width, whole, values[i]);
  if (args.delta != nullptr) {
    float deltas[kEach][8];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      load_numbers(args.delta + row * width, i * kRowThreads + threadIdx.x, width, whole, deltas[i]);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum = fmaf(deltas[i][j], deltas[i][j], sum);
    }
    const float scale = args.delta_norm != nullptr ? norm_scale(block_sum<kRowThreads>(sum), width, args.eps) : 1.0f;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      float weights[8];
      if (args.delta_norm != nullptr)
        load_numbers(args.delta_norm, i * kRowThreads + threadIdx.x, width, width % 8 == 0, weights);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float delta = args.delta_norm != nullptr ? deltas[i][j] * scale * weights[j] : deltas[i][j];
        values[i][j] = fmaf(args.delta_scale, delta, values[i][j]);
      }
    }
  }
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      values[i][j] *= args.h_scale;
      sum = fmaf(values[i][j], values[i][j], sum);
    }
    if (args.delta != nullptr || args.h_scale != 1.0f)
      store_numbers(h, i * kRowThreads + threadIdx.x, width, whole, values[i]);
  }
  if (args.norm == nullptr) return;
  const float scale = norm_scale(block_sum<kRowThreads>(sum), width, args.eps);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    float weights[8];
    load_numbers(args.norm, i * kRowThreads + threadIdx.x, width, width % 8 == 0, weights);
#pragma unroll
    for (int j = 0; j < 8; ++j) values[i][j] = values[i][j] * scale * weights[j];
    store_numbers(args.out + row * width, i * kRowThreads + threadIdx.x, width, whole, values[i]);
  }
  if (args.round.tiles != nullptr) round_row(args.round, row, values);
}

/// Numbers of one head at one position to where they are kept. All threads of a warp take part.
__device__ void store_head(const KvView& kv, std::byte* slab, float* scale, std::int64_t step, const float* values,
                           std::int32_t count) {
  const int lane = threadIdx.x % 32;
  float inverse = 1.0f, largest = 0.0f;
  if (kv.format == KvFormat::int8 || kv.format == KvFormat::fp8_e4m3) {
    bool finite = true;
    for (std::int32_t i = lane; i < count; i += 32) {
      finite = finite && isfinite(values[i]);
      largest = fmaxf(largest, fabsf(values[i]));
    }
    largest = warp_max(largest);
    inverse = largest / (kv.format == KvFormat::int8 ? 127.0f : 448.0f);
    if (__any_sync(0xffffffffu, !finite)) inverse = NAN;
    if (lane == 0) *scale = inverse;
  }
  for (std::int32_t i = lane; i < count; i += 32) {
    const float value = values[i];
    const std::int64_t at = i * step;
    switch (kv.format) {
      case KvFormat::f32:
        reinterpret_cast<float*>(slab)[at] = value;
        break;
      case KvFormat::bf16:
        reinterpret_cast<__nv_bfloat16*>(slab)[at] = __float2bfloat16_rn(value);
        break;
      case KvFormat::int8: {
        const float code = inverse > 0.0f ? fminf(fmaxf(rintf(value / inverse), -127.0f), 127.0f) : 0.0f;
        reinterpret_cast<std::int8_t*>(slab)[at] = static_cast<std::int8_t>(code);
        break;
      }
      case KvFormat::fp8_e4m3:
        reinterpret_cast<__nv_fp8_storage_t*>(slab)[at] =
            __nv_cvt_float_to_fp8(inverse > 0.0f ? value / inverse : 0.0f, __NV_SATFINITE, __NV_E4M3);
        break;
    }
  }
}

/// What the norms over all heads of a row multiply with; 1 where there is none.
struct RowScales {
  float q = 1.0f, k = 1.0f;
};

/// Head `index` of q, k and v together, by one warp; `values` [head_dim] in shared memory.
__device__ void rope_store_head(const RopeLaunch& args, const RowScales& row_scales, std::int64_t row,
                                std::int32_t index, float* values) {
  const int lane = threadIdx.x % 32;
  const std::int32_t dim = args.head_dim;
  float* q = args.qkv + row * args.qkv_width;
  const float *k = q + args.heads * dim, *v = args.value_is_key ? k : k + args.kv_heads * dim;
  const bool is_q = index < args.heads, is_v = index >= args.heads + args.kv_heads;
  const std::int32_t head = is_q ? index : (index - args.heads) % args.kv_heads;
  const float* source = (is_q ? q : is_v ? v : k) + head * dim;

  const bool weighted = !is_v && args.norm != 0;
  const float* weight = is_q ? args.q_norm : args.k_norm;
  float scale = 1.0f;
  if (is_v ? args.value_norm : args.norm == kNormPerHead) {
    float sum = 0.0f;
    for (std::int32_t i = lane; i < dim; i += 32) sum = fmaf(source[i], source[i], sum);
    scale = norm_scale(warp_sum(sum), dim, args.eps);
  } else if (weighted) {
    scale = is_q ? row_scales.q : row_scales.k;
    weight += head * dim;
  }
  for (std::int32_t i = lane; i < dim; i += 32) values[i] = source[i] * scale * (weighted ? weight[i] : 1.0f);
  __syncwarp();
  if (!is_v && args.cos != nullptr) {
    const std::int32_t half = args.rotary_dim / 2;
    const float *cos = args.cos + row * half, *sin = args.sin + row * half;
    for (std::int32_t i = lane; i < half; i += 32) {
      const float a = values[i], b = values[i + half];
      values[i] = a * cos[i] - b * sin[i];
      values[i + half] = b * cos[i] + a * sin[i];
    }
    __syncwarp();
  }
  if (is_q) {
    const float factor = args.q_scale != nullptr ? args.q_scale[row] : 1.0f;
    for (std::int32_t i = lane; i < dim; i += 32) q[head * dim + i] = values[i] * factor;
    return;
  }
  const BatchView& batch = args.batch;
  const KvView& kv = args.kv;
  const std::int32_t position = batch.row_position[row], sequence = batch.row_sequence[row];
  const std::int32_t* table = batch.page_tables + batch.table_offsets[args.group * batch.sequences + sequence];
  std::byte* page = kv.pages + static_cast<std::size_t>(table[position / kv.page_tokens]) * kv.page_bytes;
  const std::int64_t slot = position % kv.page_tokens, slots = std::int64_t{head} * kv.page_tokens;
  const std::int64_t element = kv.format == KvFormat::f32 ? 4 : kv.format == KvFormat::bf16 ? 2 : 1;
  std::byte* slab =
      page + (is_v ? kv.value_offset : kv.key_offset) + (slots * dim + (is_v ? slot * dim : slot)) * element;
  float* scale_slot =
      reinterpret_cast<float*>(page + (is_v ? kv.value_scale_offset : kv.key_scale_offset)) + slots + slot;
  store_head(kv, slab, scale_slot, is_v ? 1 : kv.page_tokens, values, dim);
}

/// Warps take the heads of a row in turn. With a norm over all heads one block has the whole row: nobody else may have
/// written over q when it is summed.
__global__ void rope_store_kernel(RopeLaunch args) {
  let_next_start();
  wait_for_inputs();
  extern __shared__ float heads_space[];  // [warps, head_dim]
  constexpr std::int32_t kWarps = kThreads / 32;
  const std::int64_t row = blockIdx.x;
  RowScales scales;
  if (args.norm == kNormAllHeads) {
    const float* q = args.qkv + row * args.qkv_width;
    const std::int32_t q_width = args.heads * args.head_dim, k_width = args.kv_heads * args.head_dim;
    scales.q = norm_scale(sum_of_squares(q, q_width), q_width, args.eps);
    if (args.store) scales.k = norm_scale(sum_of_squares(q + q_width, k_width), k_width, args.eps);
    __syncthreads();
  }
  const std::int32_t warp = threadIdx.x / 32, count = args.heads + (args.store ? 2 * args.kv_heads : 0);
  for (std::int32_t index = blockIdx.y * kWarps + warp; index < count; index += gridDim.y * kWarps) {
    __syncwarp();  // the last head has been read
    rope_store_head(args, scales, row, index, heads_space + warp * args.head_dim);
  }
}

__global__ void activate_kernel(ActivateLaunch args) {
  let_next_start();
  wait_for_inputs();
  const std::int64_t row = blockIdx.x, i = std::int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (i >= args.width) return;
  args.out[row * args.out_stride + i] =
      activated(args.activation, args.clamp_limit, args.gate[row * args.gate_stride + i],
                args.other[row * args.other_stride + i]);
}

__global__ void combine_kernel(CombineLaunch args) {
  let_next_start();
  wait_for_inputs();
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < args.count) args.out[i] = args.y != nullptr ? args.a * args.x[i] + args.b * args.y[i] : args.a * args.x[i];
}

__global__ void gather_rows_kernel(GatherLaunch args) {
  let_next_start();
  wait_for_inputs();
  const std::int64_t row = blockIdx.x, source = args.indices[row], width = args.width;
  for (std::int64_t i = threadIdx.x; i < width; i += kThreads) args.out[row * width + i] = args.x[source * width + i];
}

__global__ void scale_softcap_kernel(SoftcapLaunch args) {
  let_next_start();
  wait_for_inputs();
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= args.count) return;
  const float value = args.scale * args.x[i];
  args.x[i] = args.softcap != 0.0f ? args.softcap * tanhf(value / args.softcap) : value;
}

/// The experts of a row: a warp finds the largest logits one after the other, the lower index where they are equal, and
/// leaves them in ascending order.
__global__ void route_kernel(RouteLaunch args) {
  let_next_start();
  wait_for_inputs();
  extern __shared__ float chosen_space[];  // a mark for each expert
  const std::int64_t row = blockIdx.x;
  const int lane = threadIdx.x;
  const float* logits = args.logits + row * args.experts;
  float* marks = chosen_space;
  for (std::int32_t e = lane; e < args.experts; e += 32) marks[e] = 0.0f;
  __syncwarp();
  float largest = -INFINITY;
  for (std::int32_t e = lane; e < args.experts; e += 32) largest = fmaxf(largest, logits[e]);
  largest = warp_max(largest);
  float all = 0.0f;
  for (std::int32_t e = lane; e < args.experts; e += 32) all += expf(logits[e] - largest);
  all = warp_sum(all);
  float chosen_sum = 0.0f;
  for (std::int32_t k = 0; k < args.top_k; ++k) {
    float best = -INFINITY;
    std::int32_t best_index = args.experts;
    for (std::int32_t e = lane; e < args.experts; e += 32) {
      if (marks[e] == 0.0f && (best_index == args.experts || logits[e] > best)) {
        best = logits[e];
        best_index = e;
      }
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
      const float other = __shfl_xor_sync(0xffffffffu, best, mask);
      const std::int32_t other_index = __shfl_xor_sync(0xffffffffu, best_index, mask);
      const bool take = other_index < args.experts &&
                        (best_index >= args.experts || other > best || (other == best && other_index < best_index));
      if (take) best = other, best_index = other_index;
    }
    if (best_index < args.experts) {
      chosen_sum += expf(best - largest);
      if (lane == 0) marks[best_index] = 1.0f;
    }
    __syncwarp();
  }
  if (lane != 0) return;
  const float divisor = args.weighting == 0 ? all : chosen_sum;  // 0: ExpertWeighting::softmax_then_top_k
  std::int32_t place = 0;
  for (std::int32_t e = 0; e < args.experts; ++e) {
    if (marks[e] == 0.0f) continue;
    args.choice[row * args.top_k + place] = e;
    args.weights[row * args.top_k + place] =
        expf(logits[e] - largest) / divisor * (args.expert_scale != nullptr ? args.expert_scale[e] : 1.0f);
    ++place;
  }
}

__global__ void sum_experts_kernel(SumExpertsLaunch args) {
  let_next_start();
  wait_for_inputs();
  const std::int64_t row = blockIdx.x, i = std::int64_t{blockIdx.y} * kThreads + threadIdx.x, width = args.width;
  if (i >= width) return;
  float sum = 0.0f;
  for (std::int64_t pair = row * args.top_k; pair < (row + 1) * args.top_k; ++pair)
    sum = fmaf(args.weights[pair], args.x[pair * width + i], sum);
  args.out[row * width + i] = sum;
}

}  // namespace

cudaError_t embed(const EmbedLaunch& launch, cudaStream_t stream) {
  return with_storage(launch.table.storage, [&]<Storage kStorage>() {
    return start(embed_kernel<kStorage>, dim3(static_cast<unsigned>(launch.batch.rows)), kThreads, 0, stream, launch);
  });
}

cudaError_t residual_norm(const NormLaunch& launch, cudaStream_t stream) {
  const std::int64_t rows = launch.round.tiles != nullptr ? round_up_to(launch.rows, 8) : launch.rows;
  const std::int64_t eights = round_up_to(launch.width, kSpanCols) / 8, each = (eights + kRowThreads - 1) / kRowThreads;
  const dim3 grid(static_cast<unsigned>(rows));
  if (each <= 1) return start(residual_norm_kernel<1>, grid, kRowThreads, 0, stream, launch);
  if (each <= 2) return start(residual_norm_kernel<2>, grid, kRowThreads, 0, stream, launch);
  if (each <= 4) return start(residual_norm_kernel<4>, grid, kRowThreads, 0, stream, launch);
  if (each <= 16) return start(residual_norm_kernel<16>, grid, kRowThreads, 0, stream, launch);
  return cudaErrorInvalidValue;
}

cudaError_t rope_store(const RopeLaunch& launch, cudaStream_t stream) {
  constexpr int kWarps = kThreads / 32;
  const std::int32_t heads = launch.heads + (launch.store ? 2 * launch.kv_heads : 0);
  const std::int32_t blocks = launch.norm == kNormAllHeads ? 1 : (heads + kWarps - 1) / kWarps;
  const dim3 grid(static_cast<unsigned>(launch.batch.rows), static_cast<unsigned>(blocks));
  const std::size_t shared = static_cast<std::size_t>(kWarps * launch.head_dim) * sizeof(float);
  return start(rope_store_kernel, grid, kThreads, shared, stream, launch);
}

cudaError_t activate(const ActivateLaunch& launch, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(launch.rows), blocks_of(launch.width));
  return start(activate_kernel, grid, kThreads, 0, stream, launch);
}

cudaError_t combine(const CombineLaunch& launch, cudaStream_t stream) {
  return start(combine_kernel, dim3(blocks_of(launch.count)), kThreads, 0, stream, launch);
}

cudaError_t gather_rows(const GatherLaunch& launch, cudaStream_t stream) {
  return start(gather_rows_kernel, dim3(static_cast<unsigned>(launch.rows)), kThreads, 0, stream, launch);
}

cudaError_t scale_softcap(const SoftcapLaunch& launch, cudaStream_t stream) {
  return start(scale_softcap_kernel, dim3(blocks_of(launch.count)), kThreads, 0, stream, launch);
}

cudaError_t route(const RouteLaunch& launch, cudaStream_t stream) {
  const std::size_t shared = static_cast<std::size_t>(launch.experts) * sizeof(float);
  return start(route_kernel, dim3(static_cast<unsigned>(launch.rows)), 32, shared, stream, launch);
}

cudaError_t sum_experts(const SumExpertsLaunch& launch, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(launch.rows), blocks_of(launch.width));
  return start(sum_experts_kernel, grid, kThreads, 0, stream, launch);
}

}  // namespace millrace::cuda
