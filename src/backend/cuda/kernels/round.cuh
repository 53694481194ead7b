// Rows of inputs in registers, eight neighbours at a time, and their rounding as quant/codes.h says. A block has a row;
// eight e of it belongs to thread e % kRowThreads.
#pragma once

#include <cmath>

#include "backend/cuda/kernels/activate.cuh"
#include "backend/cuda/kernels/decode.cuh"
#include "backend/cuda/kernels/launch.h"
#include "backend/cuda/kernels/reduce.cuh"

namespace millrace::cuda {

inline constexpr int kRowThreads = 512;

/// Whether eights of rows of this stride can be read and written as wholes.
__device__ inline bool whole_eights(const float* row, std::int64_t width, std::int64_t stride) {
  return width % 8 == 0 && stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(row) % 16 == 0;
}

/// Numbers [8 * eight, 8 * eight + 8) of a row of `width`; zeros beyond it.
__device__ inline void load_numbers(const float* row, std::int64_t eight, std::int64_t width, bool whole,
                                    float (&out)[8]) {
  if (whole && eight * 8 < width) {
    const float4 a = reinterpret_cast<const float4*>(row)[eight * 2],
                 b = reinterpret_cast<const float4*>(row)[eight * 2 + 1];
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) out[i] = eight * 8 + i < width ? row[eight * 8 + i] : 0.0f;
}

__device__ inline void store_numbers(float* row, std::int64_t eight, std::int64_t width, bool whole,
                                     const float (&values)[8]) {
  if (whole && eight * 8 < width) {
    reinterpret_cast<float4*>(row)[eight * 2] = make_float4(values[0], values[1], values[2], values[3]);
    reinterpret_cast<float4*>(row)[eight * 2 + 1] = make_float4(values[4], values[5], values[6], values[7]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (eight * 8 + i < width) row[eight * 8 + i] = values[i];
  }
}

__device__ inline float int8_code(float value, float scale) {
  return scale > 0.0f ? fminf(fmaxf(rintf(value / scale), -127.0f), 127.0f) : 0.0f;
}

__device__ inline std::uint8_t e4m3_code(float value, float scale) {
  return scale > 0.0f ? __nv_cvt_float_to_fp8(value / scale, __NV_SATFINITE, __NV_E4M3) : 0;
}

/// max |x|, infinity where one is not finite.
__device__ inline float largest_of(const float (&values)[8]) {
  float largest = 0.0f;
  bool finite = true;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    finite = finite && isfinite(values[i]);
    largest = fmaxf(largest, fabsf(values[i]));
  }
  return finite ? largest : INFINITY;
}

__device__ inline float scale_of(float largest, float codes) {
  return isfinite(largest) ? largest / codes : NAN;
}

__device__ inline std::uint32_t two_halves(float low, float high, bool half) {
  if (half) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  }
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

/// An eight of a row becomes what the product reads, with the scale of its row or group.
///
/// A tile of 8 rows and 32 inputs has, thread by thread of a warp, the eight inputs of each. As core matrices it is cut
/// along inputs into pieces of 8 rows by 16 bytes, and has inputs in the order in which the threads' eights come to an
/// instruction: of 16 bits the first two of all four threads of a row, then the second two, and so on; of 8 bits the
/// first four, then the second.
__device__ inline void round_eight(const RoundLaunch& args, std::int64_t row, std::int64_t eight,
                                   const float (&values)[8], float scale) {
  if (args.values != nullptr) {
    if (row >= args.rows) return;
    float rounded[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      rounded[i] = values[i];
      if (args.rounding == Rounding::bf16) rounded[i] = __bfloat162float(__float2bfloat16_rn(values[i]));
      if (args.rounding == Rounding::int8) rounded[i] = scale * int8_code(values[i], scale);
      if (args.rounding == Rounding::e4m3) rounded[i] = scale * e4m3_value(e4m3_code(values[i], scale));
    }
    store_numbers(args.values + row * args.cols, eight, args.cols, args.cols % 8 == 0, rounded);
    return;
  }
  const std::int64_t blocks = round_up_to(args.cols, kSpanCols) / kBlockCols;
  const std::int64_t block = row / 8 * blocks + eight / 4, line = row % 8, quad = eight % 4;
  if (rounds_to_bytes(args.rounding, args.core_matrices)) {
    std::uint32_t words[2] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const auto code = args.rounding == Rounding::e4m3
                            ? std::uint32_t{e4m3_code(values[i], scale)}
                            : static_cast<std::uint32_t>(static_cast<std::int32_t>(int8_code(values[i], scale)) & 0xff);
      words[i / 4] |= code << i % 4 * 8;
    }
    std::byte* tile = static_cast<std::byte*>(args.tiles) + block * 256;
    if (args.core_matrices) {
#pragma unroll
      for (int i = 0; i < 2; ++i) *reinterpret_cast<std::uint32_t*>(tile + i * 128 + line * 16 + quad * 4) = words[i];
    } else {
      *reinterpret_cast<uint2*>(tile + (line * 4 + quad) * 8) = make_uint2(words[0], words[1]);
    }
    return;
  }
  const bool half = args.rounding == Rounding::e4m3;
  std::uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float low = values[2 * i], high = values[2 * i + 1];
    if (half) low = e4m3_value(e4m3_code(low, scale)), high = e4m3_value(e4m3_code(high, scale));
    words[i] = two_halves(low, high, half);
  }
  std::byte* tile = static_cast<std::byte*>(args.tiles) + block * 512;
  if (args.core_matrices) {
#pragma unroll
    for (int i = 0; i < 4; ++i) *reinterpret_cast<std::uint32_t*>(tile + i * 128 + line * 16 + quad * 4) = words[i];
  } else {
    *reinterpret_cast<uint4*>(tile + (line * 4 + quad) * 16) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

/// Eights that are rounded of a row: for tiles also those that fill the last span up.
__device__ inline std::int64_t rounded_eights(const RoundLaunch& args) {
  return args.values != nullptr ? (args.cols + 7) / 8 : round_up_to(args.cols, kSpanCols) / 8;
}

/// A row that a block has in registers, kEach eights a thread. All threads take part.
template <int kEach>
__device__ inline void round_row(const RoundLaunch& args, std::int64_t row, const float (&values)[kEach][8]) {
  const bool bytes = args.rounding == Rounding::int8;
  const std::int64_t eights = rounded_eights(args);
  float row_scale = 1.0f;
  if ((bytes && args.group == 0) || args.rounding == Rounding::e4m3) {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < kEach; ++i) largest = fmaxf(largest, largest_of(values[i]));
    row_scale = scale_of(block_max<kRowThreads>(largest), bytes ? 127.0f : 448.0f);
    if (threadIdx.x == 0 && args.scales != nullptr && row < args.rows) args.scales[row] = row_scale;
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const std::int64_t eight = i * kRowThreads + threadIdx.x;
    float scale = row_scale;
    if (bytes && args.group > 0) {
      // A group is some neighbouring threads' eights. (launch_round() sees to it that it is no more than a warp's.)
      float largest = largest_of(values[i]);
      for (int mask = 1; mask < args.group / 8; mask *= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, mask));
      scale = scale_of(largest, 127.0f);
      const std::int64_t groups = (args.cols + args.group - 1) / args.group, group = eight * 8 / args.group;
      if (eight * 8 % args.group == 0 && args.scales != nullptr && row < args.rows && group < groups)
        args.scales[row * groups + group] = scale;
    }
    if (eight < eights) round_eight(args, row, eight, values[i], scale);
  }
}

}  // namespace millrace::cuda
