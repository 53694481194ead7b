// Weights as floats, eight at a time, whatever they are stored as.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "backend/cuda/kernels/launch.h"

namespace millrace::cuda {

/// The value of a code of E4M3, which a half holds exactly.
__device__ inline float e4m3_value(std::uint8_t code) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)));
}

/// Twice the value of a code of E2M1.
__device__ inline float e2m1_step(std::uint32_t code) {
  constexpr std::uint32_t kLow = 0x03020100, kHigh = 0x0c080604;
  const std::uint32_t magnitude = ((code & 4u) != 0 ? kHigh : kLow) >> (code & 3u) * 8 & 0xffu;
  return (code & 8u) != 0 ? -static_cast<float>(magnitude) : static_cast<float>(magnitude);
}

__device__ inline float scale_at(const WeightView& w, std::int64_t index) {
  if (w.scales == nullptr) return 1.0f;
  return w.half_scales ? __half2float(static_cast<const __half*>(w.scales)[index])
                       : static_cast<const float*>(w.scales)[index];
}

/// Inputs [8 * eight, 8 * eight + 8) of output `row`, scaled.
template <Storage kStorage>
__device__ inline void load_eight(const WeightView& w, std::int64_t row, std::int64_t eight, float (&out)[8]) {
  const std::byte* at = w.data + eight_offset(kStorage, w.cols, row, eight);
  if constexpr (kStorage == Storage::rows_f32) {
    const float4 a = reinterpret_cast<const float4*>(at)[0], b = reinterpret_cast<const float4*>(at)[1];
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
    return;
  } else if constexpr (kStorage == Storage::rows_f16 || kStorage == Storage::bf16) {
    const uint4 raw = *reinterpret_cast<const uint4*>(at);
    const std::uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kStorage == Storage::bf16) {
        out[2 * i] = __uint_as_float(words[i] << 16);
        out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
      } else {
        const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
        out[2 * i] = pair.x;
        out[2 * i + 1] = pair.y;
      }
    }
    return;
  } else {
    const std::int64_t index = group_index(w.groups(), row, w.group == 0 ? 0 : eight * 8 / w.group);
    const float scale = scale_at(w, index) * (w.row_scales != nullptr ? w.row_scales[row] : 1.0f);
    const std::int32_t zero = w.zeros != nullptr ? w.zeros[index] - w.zero_bias : 0;
    if constexpr (kStorage == Storage::int8 || kStorage == Storage::e4m3) {
      const uint2 raw = *reinterpret_cast<const uint2*>(at);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const std::uint32_t code = (i < 4 ? raw.x : raw.y) >> i % 4 * 8 & 0xffu;
        const float step = kStorage == Storage::e4m3
                               ? e4m3_value(static_cast<std::uint8_t>(code))
                               : static_cast<float>(static_cast<std::int32_t>(static_cast<std::int8_t>(code)) - zero);
        out[i] = step * scale;
      }
    } else {
      const std::uint32_t raw = *reinterpret_cast<const std::uint32_t*>(at);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const std::uint32_t code = raw >> code_bit(kStorage, i) & 15u;
        const float step =
            kStorage == Storage::e2m1 ? e2m1_step(code) : static_cast<float>(static_cast<std::int32_t>(code) - zero);
        out[i] = step * scale;
      }
    }
  }
}

/// Calls fn with the storage as a constant.
template <typename Function>
cudaError_t with_storage(Storage storage, Function&& fn) {
  switch (storage) {
    case Storage::rows_f32:
      return fn.template operator()<Storage::rows_f32>();
    case Storage::rows_f16:
      return fn.template operator()<Storage::rows_f16>();
    case Storage::bf16:
      return fn.template operator()<Storage::bf16>();
    case Storage::int8:
      return fn.template operator()<Storage::int8>();
    case Storage::int4:
      return fn.template operator()<Storage::int4>();
    case Storage::e2m1:
      return fn.template operator()<Storage::e2m1>();
    case Storage::e4m3:
      break;
  }
  return fn.template operator()<Storage::e4m3>();
}

}  // namespace millrace::cuda
