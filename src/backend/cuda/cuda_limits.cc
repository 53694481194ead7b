#include "backend/cuda/cuda_limits.h"

#include <algorithm>

#include "backend/cuda/kernels/launch.h"

namespace millrace::cuda {

namespace {

constexpr std::size_t kMemory = std::size_t{2} << 30;
constexpr int kRuns = 5;

/// Device seconds of what `start` puts into the stream, the least of some runs.
template <typename Function>
double least_seconds(Device& device, Function&& start) {
  cudaEvent_t begin = nullptr, end = nullptr;
  MILLRACE_CUDA_CHECK(cudaEventCreate(&begin));
  MILLRACE_CUDA_CHECK(cudaEventCreate(&end));
  float least = 0.0f;
  for (int run = 0; run < kRuns; ++run) {
    MILLRACE_CUDA_CHECK(cudaEventRecord(begin, device.stream()));
    MILLRACE_CUDA_CHECK(start());
    MILLRACE_CUDA_CHECK(cudaEventRecord(end, device.stream()));
    MILLRACE_CUDA_CHECK(cudaEventSynchronize(end));
    float milliseconds = 0.0f;
    MILLRACE_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    least = run == 0 ? milliseconds : std::min(least, milliseconds);
  }
  MILLRACE_CUDA_CHECK(cudaEventDestroy(begin));
  MILLRACE_CUDA_CHECK(cudaEventDestroy(end));
  return static_cast<double>(least) * 1e-3;
}

}  // namespace

Result<DeviceLimits> measure_cuda_limits(Device& device) {
  DeviceLimits limits;
  const std::int32_t processors = device.multiprocessors();
  {
    const std::size_t bytes = std::min<std::size_t>(kMemory, device.free_memory() / 2);
    MILLRACE_TRY(const std::shared_ptr<void> memory, device.allocate(bytes + 256, "the measurement of its speed"));
    auto* sink = reinterpret_cast<std::uint32_t*>(static_cast<std::byte*>(memory.get()) + bytes / 256 * 256);
    const double seconds = least_seconds(device, [&] {
      return read_memory(memory.get(), static_cast<std::int64_t>(bytes), sink, processors, device.stream());
    });
    limits.read_bytes_per_second = static_cast<double>(bytes) / seconds;
    const bool wgmma = have_wgmma(device.capability());
    // Where no instruction takes E4M3, it is multiplied as half precision, which is as fast as bfloat16.
    const std::pair<Arithmetic, MultiplyKind> kinds[] = {
        {Arithmetic::f32, MultiplyKind::f32},
        {Arithmetic::bf16, wgmma ? MultiplyKind::bf16_wgmma : MultiplyKind::bf16},
        {Arithmetic::fp8, wgmma ? MultiplyKind::e4m3_wgmma : MultiplyKind::bf16},
        {Arithmetic::int8, wgmma ? MultiplyKind::int8_wgmma : MultiplyKind::int8}};
    for (const auto& of : kinds) {
      const MultiplyKind kind = of.second;
      if (device.capability() < 80 && kind != MultiplyKind::f32) continue;
      constexpr std::int64_t kRounds = 1 << 12;
      const double elapsed =
          least_seconds(device, [&] { return reach_operations(kind, kRounds, sink, processors, device.stream()); });
      limits.operations_per_second[static_cast<std::size_t>(of.first)] =
          multiply_operations(kind, kRounds, processors) / elapsed;
    }
    device.wait();
  }
  return limits;
}

}  // namespace millrace::cuda
