#include "backend/cpu/cpu_limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>

#include "backend/cpu/device_memory.h"

namespace millrace {

namespace {

constexpr std::int64_t kMemory = std::int64_t{256} << 20;  // what no cache of a machine of this kind holds much of
constexpr std::int64_t kPiece = std::int64_t{1} << 20;
constexpr int kRuns = 5;
constexpr std::int64_t kTasksPerThread = 8;  // so that a thread that comes late costs little
constexpr double kRunSeconds = 4e-3;

template <typename Function>
double seconds(Function&& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Result<DeviceLimits> measure_cpu_limits(const KernelTable& kernels, ThreadPool& pool) {
  DeviceLimits limits;
  MILLRACE_TRY(const std::shared_ptr<void> shared, allocate_device_memory(kMemory, "the measurement of its speed"));
  auto* memory = static_cast<std::byte*>(shared.get());
  constexpr std::int64_t kPieces = kMemory / kPiece;
  // Written to, since pages that nobody has written are all the same page of zeros.
  pool.run(kPieces, [&](std::int64_t piece, int) {
    std::memset(memory + piece * kPiece, static_cast<int>(piece % 100), kPiece);
  });
  std::atomic<float> sink{0.0f};
  for (int run = 0; run < kRuns; ++run) {
    const double elapsed = seconds([&] {
      pool.run(kPieces, [&](std::int64_t piece, int) {
        sink.store(kernels.read_memory(memory + piece * kPiece, kPiece), std::memory_order_relaxed);
      });
    });
    limits.read_bytes_per_second = std::max(limits.read_bytes_per_second, static_cast<double>(kMemory) / elapsed);
  }

  for (std::size_t a = 0; a < kArithmetics; ++a) {
    const std::int64_t tasks = kTasksPerThread * pool.threads();
    std::int64_t rounds = 1 << 12;
    for (int run = 0; run < kRuns; ++run) {
      std::atomic<std::int64_t> operations{0};
      const double elapsed = seconds([&] {
        pool.run(tasks, [&](std::int64_t, int) {
          float result = 0.0f;
          operations += kernels.products.multiply_add[a](rounds, &result);
          sink.store(result, std::memory_order_relaxed);
        });
      });
      double& best = limits.operations_per_second[a];
      best = std::max(best, static_cast<double>(operations) / elapsed);
      rounds = std::max(rounds, static_cast<std::int64_t>(static_cast<double>(rounds) * kRunSeconds / elapsed));
    }
  }
  return limits;
}

}  // namespace millrace
