// Inputs of products, rounded: as numbers in rows, or as tiles for matrix instructions.
#include "backend/cuda/kernels/cluster.cuh"
#include "backend/cuda/kernels/grid.cuh"
#include "backend/cuda/kernels/launch.h"
#include "backend/cuda/kernels/round.cuh"

namespace millrace::cuda {

namespace {

/// An eight of the inputs; zeros beyond the last row and input.
__device__ void load_inputs_of(const RoundLaunch& args, std::int64_t row, std::int64_t eight, float (&values)[8]) {
  if (row >= args.rows) {
#pragma unroll
    for (float& value : values) value = 0.0f;
    return;
  }
  const float* x = args.x + row * args.x_stride;
  if (args.order != nullptr) {
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = eight * 8 + i < args.cols ? x[args.order[eight * 8 + i]] : 0.0f;
    return;
  }
  load_numbers(x, eight, args.cols, whole_eights(args.x, args.cols, args.x_stride), values);
  if (args.other == nullptr) return;
  float others[8];
  load_numbers(args.other + row * args.x_stride, eight, args.cols, whole_eights(args.other, args.cols, args.x_stride),
               others);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    values[i] = eight * 8 + i < args.cols ? activated(args.activation, args.clamp_limit, values[i], others[i]) : 0.0f;
  }
}

/// A block for each row, also for those that fill the last tile up.
template <int kEach>
__global__ void __launch_bounds__(kRowThreads) round_rows_kernel(RoundLaunch args) {
  let_next_start();
  wait_for_inputs();
  float values[kEach][8];
#pragma unroll
  for (int i = 0; i < kEach; ++i) load_inputs_of(args, blockIdx.x, i * kRowThreads + threadIdx.x, values[i]);
  round_row(args, blockIdx.x, values);
}

/// A row that kShare blocks, a cluster, have an eight a thread of, where rows are too few to keep the device busy: to
/// activate and round thousands of inputs takes a multiprocessor alone several microseconds.
template <int kShare>
__global__ void __launch_bounds__(kRowThreads) round_shared_rows_kernel(RoundLaunch args) {
  let_next_start();
  sync_cluster();  // all blocks are there to be written to
  wait_for_inputs();
  __shared__ float maxima[kShare];
  const std::int64_t row = blockIdx.x, eight = std::int64_t{blockIdx.y} * kRowThreads + threadIdx.x;
  float values[8];
  load_inputs_of(args, row, eight, values);
  const float largest = block_max<kRowThreads>(largest_of(values));
  if (threadIdx.x < kShare) write_shared_of(&maxima[blockIdx.y], threadIdx.x, largest);
  sync_cluster();
  float of_row = maxima[0];
#pragma unroll
  for (int i = 1; i < kShare; ++i) of_row = fmaxf(of_row, maxima[i]);
  const float scale = scale_of(of_row, args.rounding == Rounding::int8 ? 127.0f : 448.0f);
  if (blockIdx.y == 0 && threadIdx.x == 0 && args.scales != nullptr && row < args.rows) args.scales[row] = scale;
  if (eight < rounded_eights(args)) round_eight(args, row, eight, values, scale);
}

/// Where no scale belongs to a whole row, several blocks share it.
__global__ void __launch_bounds__(kRowThreads) round_parts_kernel(RoundLaunch args) {
  let_next_start();
  wait_for_inputs();
  const std::int64_t eight = std::int64_t{blockIdx.y} * kRowThreads + threadIdx.x;
  if (eight >= rounded_eights(args)) return;
  float values[8];
  load_inputs_of(args, blockIdx.x, eight, values);
  round_eight(args, blockIdx.x, eight, values, 1.0f);
}

/// Groups of inputs that no warp has as a whole: a warp for each, twice over its inputs.
__global__ void __launch_bounds__(kRowThreads) round_groups_kernel(RoundLaunch args) {
  let_next_start();
  wait_for_inputs();
  const std::int64_t row = blockIdx.x, eights = rounded_eights(args), each = args.group / 8;
  const std::int64_t groups = (args.cols + args.group - 1) / args.group;
  const int lane = threadIdx.x % 32;
  for (std::int64_t group = threadIdx.x / 32; group * each < eights; group += kRowThreads / 32) {
    const std::int64_t end = (group + 1) * each < eights ? (group + 1) * each : eights;
    float largest = 0.0f, values[8];
    for (std::int64_t eight = group * each + lane; eight < end; eight += 32) {
      load_inputs_of(args, row, eight, values);
      largest = fmaxf(largest, largest_of(values));
    }
    const float scale = scale_of(warp_max(largest), 127.0f);
    if (lane == 0 && args.scales != nullptr && row < args.rows && group < groups)
      args.scales[row * groups + group] = scale;
    for (std::int64_t eight = group * each + lane; eight < end; eight += 32) {
      load_inputs_of(args, row, eight, values);
      round_eight(args, row, eight, values, scale);
    }
  }
}

template <int kEach>
cudaError_t start_rows(const RoundLaunch& launch, std::int64_t rows, cudaStream_t stream) {
  return start(round_rows_kernel<kEach>, dim3(static_cast<unsigned>(rows)), kRowThreads, 0, stream, launch);
}

template <int kShare>
cudaError_t start_shared(const RoundLaunch& launch, std::int64_t rows, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(rows), kShare);
  return start(round_shared_rows_kernel<kShare>, grid, kRowThreads, 0, stream, launch, dim3(1, kShare));
}

constexpr std::int64_t kFewRows = 32;  // that share the device

}  // namespace

bool rounds_in_registers(const RoundLaunch& launch) {
  return launch.rounding != Rounding::int8 || launch.group == 0 || (launch.group <= 256 && 256 % launch.group == 0);
}

cudaError_t round_inputs(const RoundLaunch& launch, cudaStream_t stream) {
  const std::int64_t rows = launch.values != nullptr ? launch.rows : round_up_to(launch.rows, 8);
  const std::int64_t eights = round_up_to(launch.cols, kSpanCols) / 8, each = (eights + kRowThreads - 1) / kRowThreads;
  if (launch.rounding == Rounding::none || launch.rounding == Rounding::bf16) {
    const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(each));
    return start(round_parts_kernel, grid, kRowThreads, 0, stream, launch);
  }
  if (!rounds_in_registers(launch)) {
    return start(round_groups_kernel, dim3(static_cast<unsigned>(rows)), kRowThreads, 0, stream, launch);
  }
  const bool one_scale = launch.rounding == Rounding::e4m3 || launch.group == 0;
  if (one_scale && starts_early() && each > 1 && each <= 8 && rows <= kFewRows) {
    return each <= 4 ? start_shared<4>(launch, rows, stream) : start_shared<8>(launch, rows, stream);
  }
  if (each <= 1) return start_rows<1>(launch, rows, stream);
  if (each <= 2) return start_rows<2>(launch, rows, stream);
  if (each <= 4) return start_rows<4>(launch, rows, stream);
  if (each <= 16) return start_rows<16>(launch, rows, stream);
  return cudaErrorInvalidValue;
}

}  // namespace millrace::cuda
