// Products for few rows: weights are streamed once for up to 64 of them. A block has some tiles of outputs and a warp
// for each part of the sums, so that a weight of few outputs keeps the memory busy too.
#include "backend/cuda/kernels/grid.cuh"
#include "backend/cuda/kernels/products.cuh"

namespace millrace::cuda {

namespace {

constexpr int kThreads = kParts * 32;

/// What a warp asks memory for at once: a span of its tiles, with the groups that are in it; or a group of two spans.
template <Storage kStorage, int kM, int kGroup>
struct Unit {
  static constexpr int kSpans = kGroup > kSpanCols ? kGroup / kSpanCols : 1;
  static constexpr int kGroups = kGroup <= kAnyGroup ? 0 : kGroup < kSpanCols ? kSpanCols / kGroup : 1;
  RawSpan<kStorage> raw[kSpans][kM];
  using Numbers = RawGroup<kStorage>[kGroups > 0 ? kGroups : 1][kM];
  Numbers numbers;
};

/// Where a thread's share of the units lies, from the one in hand on.
template <Storage kStorage, int kM, int kGroup>
struct UnitCursor {
  using Units = Unit<kStorage, kM, kGroup>;
  const uint4* weights[kM];
  const std::byte* scales[Units::kGroups > 0 ? kM : 1];
  const std::uint8_t* zeros[kStorage == Storage::int4 && Units::kGroups > 0 ? kM : 1];
  std::int32_t spans, groups;  // to come, of the tile's

  __device__ UnitCursor(const WeightView& w, const OutputTiles<kM>& tiles, std::int32_t tile_spans, std::int32_t unit) {
    constexpr int kShare = kWeightSpan<kStorage> / 16;
    const std::int32_t tile_groups = Units::kGroups > 0 ? (static_cast<std::int32_t>(w.cols) + kGroup - 1) / kGroup : 0;
    spans = tile_spans - unit * Units::kSpans;
    groups = tile_groups - unit * Units::kGroups;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      weights[m] = reinterpret_cast<const uint4*>(w.data) +
                   (tiles.index[m] * tile_spans + unit * Units::kSpans) * kShare + threadIdx.x % 32;
      if constexpr (Units::kGroups > 0) {
        const std::int64_t index =
            (tiles.index[m] * tile_groups + unit * Units::kGroups) * kTileRows + threadIdx.x % 32 / 4;
        scales[m] = static_cast<const std::byte*>(w.scales) + index * (w.half_scales ? 2 : 4);
        if constexpr (kStorage == Storage::int4) zeros[m] = w.zeros + index;
      }
    }
  }

  /// Of the unit that is `ahead` of the one in hand. Groups beyond the last stay what they were.
  __device__ void stream(const WeightView& w, int ahead, Units& unit) const {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int s = 0; s < Units::kSpans; ++s) {
        if (s == 0 || ahead * Units::kSpans + s < spans) unit.raw[s][m].stream(weights[m], ahead * Units::kSpans + s);
      }
    }
    stream_numbers(w, ahead, unit.numbers);
  }

  __device__ void stream_numbers(const WeightView& w, int ahead, typename Units::Numbers& numbers) const {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int g = 0; g < Units::kGroups; ++g) {
        const int group = ahead * Units::kGroups + g;
        if (Units::kGroups == 1 || group < groups)
          numbers[g][m].stream(w.half_scales, scales[m], zeros[kStorage == Storage::int4 ? m : 0], group);
      }
    }
  }

  __device__ void advance(const WeightView& w, int units) {
    spans -= units * Units::kSpans;
    groups -= units * Units::kGroups;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      weights[m] += units * Units::kSpans * (kWeightSpan<kStorage> / 16);
      if constexpr (Units::kGroups > 0) {
        scales[m] += units * Units::kGroups * kTileRows * (w.half_scales ? 2 : 4);
        if constexpr (kStorage == Storage::int4) zeros[m] += units * Units::kGroups * kTileRows;
      }
    }
  }
};

/// A warp's work on units of a part.
template <Storage kStorage, Product kProduct, int kM, int kN, int kGroup>
struct Worker {
  using Sums = PartSums<kStorage, kProduct, kM, kN, kGroup>;
  using Units = Unit<kStorage, kM, kGroup>;
  Sums sums;
  float row_scales[kN][2];

  /// A span of a unit, number `span` of a tile, maybe the unit's first or last. `groups` are those from the unit's
  /// first to the tile's last.
  __device__ void take(const MatmulLaunch& args, const OutputTiles<kM>& tiles, std::int32_t first_row_tile,
                       std::int32_t span, bool first, bool last, std::int32_t groups,
                       const RawSpan<kStorage> (&raw)[kM], const typename Units::Numbers& numbers,
                       const std::uint32_t (&b)[2][kN][2][2]) {
    if constexpr (kGroup == 16 || kGroup == 32) {
      take_groups<0>(args, first_row_tile, span, groups, raw, numbers, b[0]);
      take_groups<1>(args, first_row_tile, span, groups, raw, numbers, b[1]);
    } else if constexpr (kGroup > kAnyGroup) {
      if (first) read_row_scales(args, first_row_tile, span / Units::kSpans);
      sums.template multiply<0>(raw, numbers[0], b[0]);
      sums.template multiply<1>(raw, numbers[0], b[1]);
      if (last) sums.close(args.weight, numbers[0], row_scales);
    } else {
      sums.template take_block<0>(args, tiles, first_row_tile, raw, b[0], span * 2);
      sums.template take_block<1>(args, tiles, first_row_tile, raw, b[1], span * 2 + 1);
    }
  }

 private:
  __device__ void read_row_scales(const MatmulLaunch& args, std::int32_t first_row_tile, std::int32_t group) {
    constexpr int kInputs = kGroup > kBlockCols ? kGroup : kBlockCols;
    Sums::read_row_scales(args, first_row_tile, (static_cast<std::int32_t>(args.weight.cols) + kInputs - 1) / kInputs,
                          group, row_scales);
  }

  template <int kBlock>
  __device__ void take_groups(const MatmulLaunch& args, std::int32_t first_row_tile, std::int32_t span,
                              std::int32_t groups, const RawSpan<kStorage> (&raw)[kM],
                              const typename Units::Numbers& numbers, const std::uint32_t (&b)[kN][2][2]) {
    constexpr int kEach = Units::kGroups / 2, kFirst = kBlock * kEach;
    if (kFirst >= groups) return;
    read_row_scales(args, first_row_tile, span * 2 + kBlock);
    if constexpr (kEach == 1) {
      sums.template multiply<kBlock>(raw, numbers[kFirst], b);
      sums.close(args.weight, numbers[kFirst], row_scales);
    } else {
#pragma unroll
      for (int half = 0; half < kEach; ++half) {
        if (kFirst + half >= groups) return;
        sums.template multiply_half<kBlock>(raw, numbers[kFirst + half], b, half);
        sums.close(args.weight, numbers[kFirst + half], row_scales);
      }
    }
  }
};

/// part_spans() in few instructions.
template <int kGroup>
__device__ inline std::int32_t spans_of_part(const WeightView& w, std::int32_t spans) {
  if constexpr (kGroup == kAnyGroup) {
    return static_cast<std::int32_t>(part_spans(w.cols, w.group));
  } else {
    constexpr int kAlign = kGroup > kSpanCols ? kGroup / kSpanCols : 1;
    return (spans + kParts * kAlign - 1) / (kParts * kAlign) * kAlign;
  }
}

template <Storage kStorage, Product kProduct, int kM, int kN, int kGroup>
__global__ void __launch_bounds__(kThreads, kGroup > kAnyGroup && kGroup != 16 && kN == 1 ? 3 : 1)
    matmul_kernel(MatmulLaunch args) {
  extern __shared__ float shared_sums[];  // [kParts][kN * 8 rows][kM * 16 outputs], integers where sums are
  using Sums = PartSums<kStorage, kProduct, kM, kN, kGroup>;
  using Units = Unit<kStorage, kM, kGroup>;
  constexpr int kDepth = kN > 2 ? 1 : kGroup == 128 || kGroup == 32 ? 3 : 4;  // units on their way
  const WeightView& w = args.weight;
  const int part = threadIdx.x / 32;
  const auto first_row_tile = static_cast<std::int32_t>(blockIdx.y) * kN;
  const std::int32_t spans = (static_cast<std::int32_t>(w.cols) + kSpanCols - 1) / kSpanCols;
  const std::int32_t all = (spans + Units::kSpans - 1) / Units::kSpans,
                     each = spans_of_part<kGroup>(w, spans) / Units::kSpans;
  const std::int32_t begin = part * each < all ? part * each : all, end = begin + each < all ? begin + each : all;
  const OutputTiles<kM> tiles(w, std::int64_t{blockIdx.x} * kM);

  UnitCursor<kStorage, kM, kGroup> cursor(w, tiles, spans, begin);
  Units units[kDepth];
#pragma unroll
  for (int d = 0; d < kDepth; ++d) {
    if (d < end - begin) cursor.stream(w, d, units[d]);
  }
  wait_for_inputs();
  let_next_start();
  Worker<kStorage, kProduct, kM, kN, kGroup> worker;
  for (std::int32_t first = begin; first < end; first += kDepth) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      if (d >= end - first) break;
      Units& now = units[d];
#pragma unroll
      for (int s = 0; s < Units::kSpans; ++s) {
        const int ahead = d * Units::kSpans + s;
        if (s > 0 && ahead >= cursor.spans) break;
        const std::int32_t span = (first + d) * Units::kSpans + s;
        std::uint32_t b[2][kN][2][2];
#pragma unroll
        for (int block = 0; block < 2; ++block) {
#pragma unroll
          for (int n = 0; n < kN; ++n)
            load_inputs<kProduct>(args.tiles, ((first_row_tile + n) * spans + span) * 2 + block, b[block][n]);
        }
        worker.take(args, tiles, first_row_tile, span, s == 0, s + 1 == Units::kSpans || ahead + 1 >= cursor.spans,
                    cursor.groups - d * Units::kGroups, now.raw[s], now.numbers, b);
      }
      if (d + kDepth < end - first) cursor.stream(w, d + kDepth, now);
    }
    cursor.advance(w, kDepth);
  }

  constexpr int kOutputs = kM * kTileRows, kRows = kN * 8;
  using Value = typename Sums::Value;
  auto* shared = reinterpret_cast<Value*>(shared_sums);
  const int quad = threadIdx.x % 4, line = threadIdx.x % 32 / 4;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int output = m * kTileRows + i / 2 * 8 + line, row = n * 8 + quad * 2 + i % 2;
        shared[(part * kRows + row) * kOutputs + output] = worker.sums.value(m, n, i);
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int first = 0; first < kOutputs * kRows; first += kThreads) {
    const int i = first + threadIdx.x;
    const std::int64_t output = std::int64_t{blockIdx.x} * kOutputs + i % kOutputs;
    const std::int32_t row = first_row_tile * 8 + i / kOutputs;
    if (i >= kOutputs * kRows || output >= w.rows || row >= args.rows) continue;
    Value total = 0;
#pragma unroll
    for (int p = 0; p < kParts; ++p) total += shared[p * kOutputs * kRows + i];
    store_total<kStorage, kProduct, kGroup != kNoGroups>(args, output, row, total);
  }
}

template <Storage kStorage, Product kProduct, int kGroup, int kM, int kN>
cudaError_t launch_tiles(const MatmulLaunch& launch, cudaStream_t stream) {
  constexpr int kShared = kParts * kM * kTileRows * kN * 8 * 4;
  auto* kernel = matmul_kernel<kStorage, kProduct, kM, kN, kGroup>;
  if constexpr (kShared > 48 << 10) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
    if (error != cudaSuccess) return error;
  }
  const std::int64_t output_tiles = (launch.weight.rows + kTileRows - 1) / kTileRows, row_tiles = (launch.rows + 7) / 8;
  const dim3 grid(static_cast<unsigned>((output_tiles + kM - 1) / kM),
                  static_cast<unsigned>((row_tiles + kN - 1) / kN));
  return start(kernel, grid, kThreads, kShared, stream, launch);
}

template <Storage kStorage, Product kProduct, int kGroup>
cudaError_t launch_rows(const MatmulLaunch& launch, cudaStream_t stream) {
  // Groups of no common size are not worth kernels of their own.
  if constexpr (kGroup != kAnyGroup) {
    // On an H200 two tiles of outputs are better for 16 rows where the inputs weigh as much as the weights, and for
    // groups of 16, of which much is to be done for each row.
    constexpr int kTwo = kStorage == Storage::bf16 || kGroup == 16 ? 2 : 1;
    if (launch.rows > 32) return launch_tiles<kStorage, kProduct, kGroup, 2, 8>(launch, stream);
    if (launch.rows > 16) return launch_tiles<kStorage, kProduct, kGroup, 2, 4>(launch, stream);
    if (launch.rows > 8) return launch_tiles<kStorage, kProduct, kGroup, kTwo, 2>(launch, stream);
  }
  return launch_tiles<kStorage, kProduct, kGroup, 1, 1>(launch, stream);
}

}  // namespace

cudaError_t matmul_few(const MatmulLaunch& launch, cudaStream_t stream) {
  return with_product(launch, [&]<Storage kStorage, Product kProduct, bool kGroups>() {
    if constexpr (kGroups) {
      const std::int32_t group = launch.weight.group, least = group < kBlockCols ? kBlockCols : group;
      if (kProduct != Product::bytes || launch.input_group == least) {
        if constexpr (kStorage == Storage::int4) {
          if (group == 64) return launch_rows<kStorage, kProduct, 64>(launch, stream);
          if (group == 128) return launch_rows<kStorage, kProduct, 128>(launch, stream);
        } else {
          if (group == 16) return launch_rows<kStorage, kProduct, 16>(launch, stream);
        }
        if (group == 32) return launch_rows<kStorage, kProduct, 32>(launch, stream);
      }
      return launch_rows<kStorage, kProduct, kAnyGroup>(launch, stream);
    } else {
      return launch_rows<kStorage, kProduct, kNoGroups>(launch, stream);
    }
  });
}

}  // namespace millrace::cuda
