// The operations of a step, collected before any is started. A sequence of operations that was seen before, with the
// same arguments as far as a hash of 64 bits tells, becomes a CUDA graph, which starts all of them with one call.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <type_traits>
#include <vector>

namespace millrace::cuda {

class StepGraph {
 public:
  ~StepGraph();

  /// Adds an operation: `start(args, stream)` puts it into the stream. Two operations are the same where `start` and
  /// the bytes of `args` are. (What lies between members should be zero: where it is not, a graph is not found again.)
  template <typename Args>
  void add(cudaError_t (*start)(const Args&, cudaStream_t), const Args& args) {
    static_assert(std::is_trivially_copyable_v<Args>);
    mix(reinterpret_cast<const void*>(start), args);
    operations_.push_back([start, args](cudaStream_t stream) { return start(args, stream); });
  }

  /// Starts what was added and forgets it. `repeats`: a step of the same shape is likely to come again, so that a graph
  /// pays.
  void run(cudaStream_t stream, bool repeats);

 private:
  struct Known {
    std::uint64_t hash = 0;
    cudaGraphExec_t graph = nullptr;  // made when the sequence comes for the second time
  };
  static constexpr std::size_t kMostKnown = 64;

  template <typename Args>
  void mix(const void* start, const Args& args) {
    mix_bytes(reinterpret_cast<const std::byte*>(&start), sizeof start);
    mix_bytes(reinterpret_cast<const std::byte*>(&args), sizeof args);
  }
  void mix_bytes(const std::byte* bytes, std::size_t count);
  void start_all(cudaStream_t stream) const;
  [[nodiscard]] cudaGraphExec_t capture(cudaStream_t stream) const;

  std::vector<std::function<cudaError_t(cudaStream_t)>> operations_;
  std::uint64_t hash_ = 0;
  std::list<Known> known_;  // the one used last in front
};

}  // namespace millrace::cuda
