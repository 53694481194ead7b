// What the kernels of products have in common, so that their sums are the same to the bit.
//
// The definition: the inputs are cut into kParts parts of whole spans (part_spans()), each a chain of matrix
// instructions in ascending order of inputs, and the parts are added in ascending order. Where weights have scales of
// groups, the sum of a group is scaled and added to the part's. Sums of integers are exact. Then come the scales of
// output and row, and the bias.
#pragma once

#include <type_traits>

#include "backend/cuda/kernels/decode.cuh"
#include "backend/cuda/kernels/launch.h"
#include "backend/cuda/kernels/mma.cuh"

namespace millrace::cuda {

/// What is multiplied: numbers of 16 bits, or codes of E4M3 (wgmma alone), with sums in f32; bytes with sums in 32
/// bits.
enum class Product { bf16, half, e4m3, bytes };

/// Inputs of 8 bits, 32 of them to an instruction.
template <Product kProduct>
inline constexpr bool kEightBits = kProduct == Product::bytes || kProduct == Product::e4m3;

/// Bytes of `low` and `high` that the four digits of a selector name; a digit of 8 and more gives the byte's sign
/// instead, eight times.
__device__ inline std::uint32_t permute(std::uint32_t low, std::uint32_t high, std::uint32_t selector) {
  std::uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(selector));
  return result;
}

__device__ inline std::uint32_t subtract_bf16(std::uint32_t a, std::uint32_t b) {
  const __nv_bfloat162 difference =
      __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&a), *reinterpret_cast<const __nv_bfloat162*>(&b));
  return *reinterpret_cast<const std::uint32_t*>(&difference);
}

/// What raised bytes of E2M1 are raised by: its largest step.
inline constexpr std::int32_t kE2m1Raise = 12;

/// Four bytes from a word of 4-bit codes, weights 4 * kHalf to 4 * kHalf + 3. Signed ones, of int4 less `zero`, which
/// is in each of its bytes; or raised: codes of int4 as they are, of E2M1 by kE2m1Raise.
template <Storage kStorage, int kHalf, bool kRaised>
__device__ inline std::uint32_t unpack_bytes(std::uint32_t word, std::uint32_t zero) {
  if constexpr (kStorage == Storage::int4) {
    const std::uint32_t codes = (kHalf == 0 ? word : word >> 4) & 0x0f0f0f0fu;
    return kRaised ? codes : ((codes | 0x80808080u) - zero) ^ 0x80808080u;  // no borrow leaves its byte
  } else {
    // A code with the sign set is a digit that selects a sign, and no byte of these tables has one: 0 comes of it.
    const std::uint32_t codes = kHalf == 0 ? word : word >> 16, flipped = codes ^ 0x8888u;
    if constexpr (kRaised) {
      return permute(0x0f0e0d0cu, 0x18141210u, codes) | permute(0x090a0b0cu, 0x00040608u, flipped);
    } else {
      const std::uint32_t negative = permute(0x7d7e7f00u, 0x74787a7cu, flipped);  // of 7 bits
      return permute(0x03020100u, 0x0c080604u, codes) | negative | (negative << 1 & 0x80808080u);
    }
  }
}

/// The same as numbers of bf16; `zero` is 128 more, twice.
template <Storage kStorage, int kHalf>
__device__ inline void unpack_bf16(std::uint32_t word, std::uint32_t zero, std::uint32_t (&out)[2]) {
  if constexpr (kStorage == Storage::int4) {
    const std::uint32_t codes = (kHalf == 0 ? word : word >> 4) & 0x0f0f0f0fu;
    out[0] = subtract_bf16(permute(codes, 0x43u, 0x4140u), zero);  // 128 + code, as its bits stand
    out[1] = subtract_bf16(permute(codes, 0x43u, 0x4342u), zero);
  } else {
    const std::uint32_t codes = kHalf == 0 ? word : word >> 16, magnitudes = codes & 0x7777u;
    const std::uint32_t signs = permute(0x80808080u, 0x80808080u, codes) << 1 & 0x80808080u;
    const std::uint32_t low = permute(0x40008000u, 0x4000c080u, magnitudes);
    const std::uint32_t high = permute(0x40403f00u, 0x41414040u, magnitudes) | signs;
    out[0] = permute(low, high, 0x5140u);
    out[1] = permute(low, high, 0x7362u);
  }
}

/// Four signed bytes as numbers of bf16.
__device__ inline void bytes_to_bf16(std::uint32_t bytes, std::uint32_t (&out)[2]) {
  const std::uint32_t raised = bytes ^ 0x80808080u;
  float values[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {  // 2^23 + byte, as its bits stand
    values[i] = __uint_as_float(__byte_perm(raised, 0x4b000000u, 0x7440u + i)) - 8388736.0f;
  }
  out[0] = pack_bf16(values[0], values[1]);
  out[1] = pack_bf16(values[2], values[3]);
}

__device__ inline std::uint32_t e4m3_to_half2(std::uint32_t two_codes) {
  const __half2_raw pair =
      __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(two_codes & 0xffffu), __NV_E4M3);
  return pair.x | static_cast<std::uint32_t>(pair.y) << 16;
}

/// Four codes of 8 bits as the numbers that are multiplied.
template <Storage kStorage, Product kProduct>
__device__ inline void bytes_to_numbers(std::uint32_t bytes, std::uint32_t (&out)[2]) {
  if constexpr (kStorage == Storage::int8) {
    bytes_to_bf16(bytes, out);
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      out[i] = e4m3_to_half2(bytes >> 16 * i);
      if constexpr (kProduct == Product::bf16) {
        const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&out[i]));
        out[i] = pack_bf16(pair.x, pair.y);
      }
    }
  }
}

/// A thread's share of a span of 64 inputs of a tile of 16 outputs, as it lies in memory.
template <Storage kStorage>
struct RawSpan {
  static constexpr int kWords = kStorage == Storage::bf16                                ? 4
                                : kStorage == Storage::int8 || kStorage == Storage::e4m3 ? 2
                                                                                         : 1;
  uint4 words[kWords];

  /// From the device's memory, where nobody else will read it soon: span `ahead` of the one where the thread's share
  /// begins at `share`.
  __device__ void stream(const uint4* share, int ahead) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = __ldcs(share + (ahead * kWords + i) * 32);
  }

  /// From a span in shared memory.
  __device__ void load(const std::byte* span) {
    const uint4* at = reinterpret_cast<const uint4*>(span) + threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = at[i * 32];
  }
};

__device__ inline std::uint32_t word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/// The operands of a block of 32 inputs, those of outputs o and o + 8 of a thread: for numbers of 16 bits two
/// instructions of 16 inputs, for bytes one of 32. `zeros` and kRaised are those of codes of 4 bits.
template <Storage kStorage, Product kProduct, int kBlock, bool kRaised = false>
__device__ inline void operands(const RawSpan<kStorage>& raw, std::uint32_t zero_low, std::uint32_t zero_high,
                                std::uint32_t (&a)[2][4]) {
  constexpr bool kFourBits = kStorage == Storage::int4 || kStorage == Storage::e2m1;
  if constexpr (kStorage == Storage::bf16) {
    const uint4 &low = raw.words[kBlock * 2], &high = raw.words[kBlock * 2 + 1];
    a[0][0] = low.x, a[0][1] = high.x, a[0][2] = low.y, a[0][3] = high.y;
    a[1][0] = low.z, a[1][1] = high.z, a[1][2] = low.w, a[1][3] = high.w;
  } else if constexpr (kProduct == Product::bytes && kFourBits) {
    const std::uint32_t low = word_of(raw.words[0], kBlock * 2), high = word_of(raw.words[0], kBlock * 2 + 1);
    a[0][0] = unpack_bytes<kStorage, 0, kRaised>(low, zero_low);
    a[0][1] = unpack_bytes<kStorage, 0, kRaised>(high, zero_high);
    a[0][2] = unpack_bytes<kStorage, 1, kRaised>(low, zero_low);
    a[0][3] = unpack_bytes<kStorage, 1, kRaised>(high, zero_high);
  } else if constexpr (kEightBits<kProduct>) {
    const uint4& block = raw.words[kBlock];
    a[0][0] = block.x, a[0][1] = block.z, a[0][2] = block.y, a[0][3] = block.w;
  } else {
    std::uint32_t low[2][2], high[2][2];  // weights 0 to 3, then 4 to 7
    if constexpr (kFourBits) {
      const std::uint32_t low_word = word_of(raw.words[0], kBlock * 2),
                          high_word = word_of(raw.words[0], kBlock * 2 + 1);
      unpack_bf16<kStorage, 0>(low_word, zero_low, low[0]);
      unpack_bf16<kStorage, 1>(low_word, zero_low, low[1]);
      unpack_bf16<kStorage, 0>(high_word, zero_high, high[0]);
      unpack_bf16<kStorage, 1>(high_word, zero_high, high[1]);
    } else {
      const uint4& block = raw.words[kBlock];
      bytes_to_numbers<kStorage, kProduct>(block.x, low[0]);
      bytes_to_numbers<kStorage, kProduct>(block.y, low[1]);
      bytes_to_numbers<kStorage, kProduct>(block.z, high[0]);
      bytes_to_numbers<kStorage, kProduct>(block.w, high[1]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      a[i][0] = low[i][0], a[i][1] = high[i][0], a[i][2] = low[i][1], a[i][3] = high[i][1];
    }
  }
}

/// The inputs of block `index` of those at `tiles`, 8 rows.
template <Product kProduct>
__device__ inline void load_inputs(const void* tiles, std::int64_t index, std::uint32_t (&b)[2][2]) {
  if constexpr (kProduct == Product::bytes) {
    const uint2 raw = static_cast<const uint2*>(tiles)[index * 32 + threadIdx.x % 32];
    b[0][0] = raw.x, b[0][1] = raw.y;
  } else {
    const uint4 raw = static_cast<const uint4*>(tiles)[index * 32 + threadIdx.x % 32];
    b[0][0] = raw.x, b[0][1] = raw.y, b[1][0] = raw.z, b[1][1] = raw.w;
  }
}

/// Tiles of outputs that a warp has; beyond the last the last one again, whose sums are thrown away.
template <int kM>
struct OutputTiles {
  std::int64_t index[kM];

  __device__ OutputTiles(const WeightView& weight, std::int64_t first) {
    const std::int64_t last = (weight.rows + kTileRows - 1) / kTileRows - 1;
#pragma unroll
    for (int m = 0; m < kM; ++m) index[m] = first + m < last ? first + m : last;
  }
};

template <Product kProduct>
using Sum = std::conditional_t<kProduct == Product::bytes, std::int32_t, float>;

/// What a kernel knows of weights that share a scale: that there are no groups, nothing, or how many: 16, 32, 64 or
/// 128.
inline constexpr int kNoGroups = 0, kAnyGroup = 1;

/// Scale and zero of a group as they lie in memory, for outputs o and o + 8 of a thread.
template <Storage kStorage>
struct RawGroup {
  std::uint32_t scale[2], zero[2];

  /// Group `ahead` of the one whose numbers of output o are at `scales` and `zeros`.
  __device__ void stream(bool half_scales, const std::byte* scales, const std::uint8_t* zeros, int ahead) {
    if (half_scales) {
      const auto* at = reinterpret_cast<const std::uint16_t*>(scales) + ahead * kTileRows;
      scale[0] = __ldcs(at), scale[1] = __ldcs(at + 8);
    } else {
      const auto* at = reinterpret_cast<const std::uint32_t*>(scales) + ahead * kTileRows;
      scale[0] = __ldcs(at), scale[1] = __ldcs(at + 8);
    }
    if constexpr (kStorage == Storage::int4) {
      zero[0] = __ldcs(zeros + ahead * kTileRows), zero[1] = __ldcs(zeros + ahead * kTileRows + 8);
    }
  }

  __device__ float scale_of(const WeightView& w, int i) const {
    return w.half_scales ? __half2float(__ushort_as_half(static_cast<unsigned short>(scale[i])))
                         : __uint_as_float(scale[i]);
  }
};

/// WeightView::groups() in few instructions.
__device__ inline std::int32_t groups_of(const WeightView& w) {
  return static_cast<std::int32_t>((static_cast<std::uint32_t>(w.cols) + w.group - 1) /
                                   static_cast<std::uint32_t>(w.group));
}

/// The sums of a warp over kM tiles of outputs and kN tiles of rows: of the part in hand, and where weights have groups
/// first of the group in hand.
///
/// Where few rows share a weight, zeros are not taken from each code of a group but from its sum of products, times the
/// sum of the group's inputs: an instruction that multiplies inputs with ones gives every thread those that it needs.
template <Storage kStorage, Product kProduct, int kM, int kN, int kGroup>
struct PartSums {
  static constexpr bool kGroups = kGroup != kNoGroups, kBytes = kProduct == Product::bytes;
  static constexpr bool kRaised = kGroups && kBytes && kN <= 2;
  /// Where sums of a group begin: of integers with the bits of 1.5 * 2^23, so that they end as the bits of that number
  /// plus the sum. Of groups of 128 no sum reaches 2^22.
  static constexpr Sum<kProduct> kStart = kBytes && kGroup > kAnyGroup ? 0x4b400000 : 0;

  Sum<kProduct> sums[kM][kN][4];
  std::int32_t input_sums[kRaised ? kN : 1][4] = {};
  float scaled[kGroups ? kM : 1][kGroups ? kN : 1][4] = {};
  RawGroup<kStorage> numbers[kM];           // of kAnyGroup: the group in hand,
  std::int32_t group = 0, blocks_left = 0;  // its index, and blocks of it to come

  __device__ PartSums() {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][n][i] = kStart;
      }
    }
  }

  using Value = std::conditional_t<kGroups, float, Sum<kProduct>>;
  __device__ Value value(int m, int n, int i) const {
    if constexpr (kGroups) {
      return scaled[m][n][i];
    } else {
      return sums[m][n][i];
    }
  }

  /// Multiplies block kBlock of a span, all of the group in hand.
  template <int kBlock>
  __device__ void multiply(const RawSpan<kStorage> (&raw)[kM], const RawGroup<kStorage> (&group_numbers)[kM],
                           const std::uint32_t (&b)[kN][2][2]) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      std::uint32_t zero[2] = {}, a[2][4];
      if constexpr (kStorage == Storage::int4 && !kRaised) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          zero[i] =
              kBytes ? group_numbers[m].zero[i] * 0x01010101u : group_numbers[m].zero[i] * 0x00010001u + 0x43004300u;
        }
      }
      operands<kStorage, kProduct, kBlock, kRaised>(raw[m], zero[0], zero[1], a);
#pragma unroll
      for (int step = 0; step < (kBytes ? 1 : 2); ++step) {
#pragma unroll
        for (int n = 0; n < kN; ++n) multiply_add(sums[m][n], a[step], b[n][step], kProduct == Product::half);
      }
    }
    if constexpr (kRaised) {
      const std::uint32_t ones[4] = {0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u};
#pragma unroll
      for (int n = 0; n < kN; ++n) multiply_add(input_sums[n], ones, b[n][0], false);
    }
  }

  /// The same with only the inputs of one half of the block, those of a group of 16.
  template <int kBlock>
  __device__ void multiply_half(const RawSpan<kStorage> (&raw)[kM], const RawGroup<kStorage> (&group_numbers)[kM],
                                const std::uint32_t (&b)[kN][2][2], int half) {
    const std::uint32_t mask = static_cast<int>(threadIdx.x) % 4 / 2 == half ? ~0u : 0u;
    std::uint32_t masked[kN][2][2];
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int step = 0; step < (kBytes ? 1 : 2); ++step) {
#pragma unroll
        for (int i = 0; i < 2; ++i) masked[n][step][i] = b[n][step][i] & mask;
      }
    }
    multiply<kBlock>(raw, group_numbers, masked);
  }

  /// Adds the sum of the group in hand to the part's, scaled.
  __device__ void close(const WeightView& w, const RawGroup<kStorage> (&group_numbers)[kM],
                        const float (&row_scales)[kN][2]) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const float scale[2] = {group_numbers[m].scale_of(w, 0), group_numbers[m].scale_of(w, 1)};
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          Sum<kProduct> sum = sums[m][n][i];
          if constexpr (kRaised) {
            const auto zero = static_cast<std::int32_t>(group_numbers[m].zero[i / 2]);
            sum -= input_sums[n][i] * (kStorage == Storage::int4 ? zero : kE2m1Raise);
          }
          float number;
          if constexpr (kStart != 0) {
            number = __int_as_float(sum) - 12582912.0f;
          } else {
            number = static_cast<float>(sum);
          }
          const float factor = kBytes ? scale[i / 2] * row_scales[n][i % 2] : scale[i / 2];
          scaled[m][n][i] = fmaf(number, factor, scaled[m][n][i]);
          sums[m][n][i] = kStart;
        }
      }
    }
    if constexpr (kRaised) {
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) input_sums[n][i] = 0;
      }
    }
  }

  /// The inputs' scales of a group of theirs, for the rows of a thread; of rows that are not there the last one's.
  static __device__ void read_row_scales(const MatmulLaunch& args, std::int32_t first_row_tile,
                                         std::int32_t input_groups, std::int32_t input_group,
                                         float (&row_scales)[kN][2]) {
    if constexpr (kBytes) {
      const auto last = static_cast<std::int32_t>(args.rows) - 1;
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const std::int32_t row = (first_row_tile + n) * 8 + static_cast<std::int32_t>(threadIdx.x) % 4 * 2 + i;
          row_scales[n][i] = args.input_scales[(row < last ? row : last) * input_groups + input_group];
        }
      }
    }
  }

  /// What kAnyGroup has to be told with each block, which may be two groups or a piece of one.
  __device__ void read_numbers(const WeightView& w, const OutputTiles<kM>& tiles) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const std::int64_t index = (tiles.index[m] * groups_of(w) + group) * kTileRows + threadIdx.x % 32 / 4;
      numbers[m].stream(w.half_scales, static_cast<const std::byte*>(w.scales) + index * (w.half_scales ? 2 : 4),
                        w.zeros + index, 0);
    }
  }
  __device__ void close_any(const MatmulLaunch& args, std::int64_t first_row_tile) {
    const WeightView& w = args.weight;
    float row_scales[kN][2];
    if constexpr (kBytes) {
      const auto cols = static_cast<std::uint32_t>(w.cols), inputs = static_cast<std::uint32_t>(args.input_group);
      read_row_scales(args, static_cast<std::int32_t>(first_row_tile),
                      static_cast<std::int32_t>((cols + inputs - 1) / inputs),
                      w.group >= args.input_group ? group : group * w.group / args.input_group, row_scales);
    }
    close(w, numbers, row_scales);
  }

  /// A block of 32 inputs; of kAnyGroup in ascending order from the first of a group on. Of groups of 16 each is
  /// multiplied with the other's inputs made zero.
  template <int kBlock>
  __device__ void take_block(const MatmulLaunch& args, const OutputTiles<kM>& tiles, std::int64_t first_row_tile,
                             const RawSpan<kStorage> (&raw)[kM], const std::uint32_t (&b)[kN][2][2],
                             std::int64_t block) {
    const WeightView& w = args.weight;
    if constexpr (!kGroups) {
      multiply<kBlock>(raw, numbers, b);
    } else if (w.group == 16) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        group = static_cast<std::int32_t>(block) * 2 + half;
        if (group * 16 >= w.cols) break;
        read_numbers(w, tiles);
        multiply_half<kBlock>(raw, numbers, b, half);
        close_any(args, first_row_tile);
      }
    } else {
      const auto now = static_cast<std::uint32_t>(block), cols = static_cast<std::uint32_t>(w.cols);
      if (now * kBlockCols >= cols) return;  // what fills the last span up
      if (blocks_left == 0) {
        group = static_cast<std::int32_t>(now * kBlockCols / static_cast<std::uint32_t>(w.group));
        blocks_left = w.group / kBlockCols;
        read_numbers(w, tiles);
      }
      multiply<kBlock>(raw, numbers, b);
      // The last group may be cut short.
      if (--blocks_left == 0 || (now + 1) * kBlockCols >= cols) close_any(args, first_row_tile);
    }
  }
};

/// What is stored for a sum over all parts.
template <Storage kStorage, Product kProduct, bool kGroups, typename Total>
__device__ inline void store_total(const MatmulLaunch& args, std::int64_t output, std::int64_t row, Total total) {
  const WeightView& w = args.weight;
  float value = static_cast<float>(total);
  if constexpr (!kGroups && kStorage != Storage::bf16) {
    const float scale = scale_at(w, group_index(1, output, 0));
    value *= kProduct == Product::bf16 ? scale : scale * args.input_scales[row];
  }
  if (w.row_scales != nullptr) value *= w.row_scales[output];
  args.out[row * args.out_stride + output] = args.bias != nullptr ? value + args.bias[output] : value;
}

/// Calls fn with what a launch multiplies as constants.
template <typename Function>
cudaError_t with_product(const MatmulLaunch& launch, Function&& fn) {
  const bool bytes = launch.rounding == Rounding::int8;
  switch (launch.weight.storage) {
    case Storage::bf16:
      return fn.template operator()<Storage::bf16, Product::bf16, false>();
    case Storage::int8:
      return bytes ? fn.template operator()<Storage::int8, Product::bytes, false>()
                   : fn.template operator()<Storage::int8, Product::bf16, false>();
    case Storage::e4m3:
      return launch.rounding == Rounding::e4m3 ? fn.template operator()<Storage::e4m3, Product::half, false>()
                                               : fn.template operator()<Storage::e4m3, Product::bf16, false>();
    case Storage::int4:
      return bytes ? fn.template operator()<Storage::int4, Product::bytes, true>()
                   : fn.template operator()<Storage::int4, Product::bf16, true>();
    case Storage::e2m1:
      return bytes ? fn.template operator()<Storage::e2m1, Product::bytes, true>()
                   : fn.template operator()<Storage::e2m1, Product::bf16, true>();
    case Storage::rows_f32:
    case Storage::rows_f16:
      break;
  }
  return cudaErrorInvalidValue;
}

/// Bytes that a span of 64 inputs takes for a tile of outputs, and for a tile of 8 rows.
template <Storage kStorage>
inline constexpr int kWeightSpan = RawSpan<kStorage>::kWords * 512;
template <Product kProduct>
inline constexpr int kInputSpan = kEightBits<kProduct> ? 512 : 1024;

}  // namespace millrace::cuda
