// How a weight lies in device memory. Host code packs by these functions and kernels read by them.
//
// Plain layouts (`rows_*`) have one output after the other. The others are cut into tiles of 16 outputs and blocks of
// 32 inputs, in the order in which the threads of a warp hold them for a matrix instruction, so that each thread reads
// 16 bytes of its own beside its neighbours': of outputs o and o + 8, thread 4 * (o % 8) + q has inputs 8 * q to 8 * q
// + 7. The instruction's own order of inputs within 32 is another one; a sum does not mind as long as the other factor
// has the same. docs/cuda.md has a drawing.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define MILLRACE_HOST_DEVICE __host__ __device__
#else
#define MILLRACE_HOST_DEVICE
#endif

namespace millrace::cuda {

enum class Storage : std::uint8_t { rows_f32, rows_f16, bf16, int8, int4, e2m1, e4m3 };

inline constexpr std::int32_t kTileRows = 16;   // outputs
inline constexpr std::int32_t kBlockCols = 32;  // inputs of one or two matrix instructions
inline constexpr std::int32_t kSpanCols = 64;   // inputs that a thread reads 16 bytes of, with 4-bit codes

MILLRACE_HOST_DEVICE constexpr bool in_tiles(Storage storage) {
  return storage != Storage::rows_f32 && storage != Storage::rows_f16;
}

MILLRACE_HOST_DEVICE constexpr std::int64_t round_up_to(std::int64_t value, std::int64_t step) {
  return (value + step - 1) / step * step;
}

/// Inputs of an output with what fills the last block up.
MILLRACE_HOST_DEVICE constexpr std::int64_t padded_cols(Storage storage, std::int64_t cols) {
  return round_up_to(cols, in_tiles(storage) ? kSpanCols : 8);
}

/// Bytes of eight neighbouring weights of an output.
MILLRACE_HOST_DEVICE constexpr std::int32_t eight_bytes(Storage storage) {
  switch (storage) {
    case Storage::rows_f32:
      return 32;
    case Storage::rows_f16:
    case Storage::bf16:
      return 16;
    case Storage::int8:
    case Storage::e4m3:
      return 8;
    case Storage::int4:
    case Storage::e2m1:
      break;
  }
  return 4;
}

/// Bytes of the weights themselves, without scales and zeros.
MILLRACE_HOST_DEVICE constexpr std::int64_t weight_bytes(Storage storage, std::int64_t rows, std::int64_t cols) {
  const std::int64_t stored_rows = in_tiles(storage) ? round_up_to(rows, kTileRows) : rows;
  return stored_rows * (padded_cols(storage, cols) / 8) * eight_bytes(storage);
}

/// Where inputs [8 * eight, 8 * eight + 8) of output `row` lie.
MILLRACE_HOST_DEVICE constexpr std::int64_t eight_offset(Storage storage, std::int64_t cols, std::int64_t row,
                                                         std::int64_t eight) {
  const std::int64_t eights = padded_cols(storage, cols) / 8;
  if (!in_tiles(storage)) return (row * eights + eight) * eight_bytes(storage);
  const std::int64_t tile = row / kTileRows, thread = row % 8 * 4 + eight % 4, half = row % kTileRows / 8,
                     block = eight / 4;
  const std::int64_t start = tile * eights * kTileRows * eight_bytes(storage);
  if (storage == Storage::bf16) return start + block * 1024 + half * 512 + thread * 16;
  if (storage == Storage::int8 || storage == Storage::e4m3) return start + block * 512 + thread * 16 + half * 8;
  return start + block / 2 * 512 + thread * 16 + block % 2 * 8 + half * 4;
}

/// Codes of 4 bits in the word of eight weights: the bit at which that of weight i begins. Of int4 the first four have
/// the lower halves of the bytes, so that a mask gives them as bytes; those of E2M1 are selectors of a byte permutation
/// and stand in order.
MILLRACE_HOST_DEVICE constexpr std::int32_t code_bit(Storage storage, std::int32_t i) {
  return storage == Storage::int4 ? i % 4 * 8 + i / 4 * 4 : i * 4;
}

/// Scales and zeros of groups lie by tile, group and output.
MILLRACE_HOST_DEVICE constexpr std::int64_t group_index(std::int64_t groups, std::int64_t row, std::int64_t group) {
  return (row / kTileRows * groups + group) * kTileRows + row % kTileRows;
}

/// Parts that the inputs are cut into for sums, so that several warps share an output (kernels/products.cuh).
inline constexpr std::int32_t kParts = 8;

/// Spans of kSpanCols inputs in each of those parts: whole groups. The last parts may have fewer or none.
MILLRACE_HOST_DEVICE constexpr std::int64_t part_spans(std::int64_t cols, std::int32_t group) {
  const std::int64_t spans = round_up_to(cols, kSpanCols) / kSpanCols;
  const std::int64_t align = group > kSpanCols ? group / kSpanCols : 1;
  return round_up_to((spans + kParts - 1) / kParts, align);
}

}  // namespace millrace::cuda
