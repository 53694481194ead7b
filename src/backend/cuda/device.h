// A GPU: its properties, memory, and one stream in which everything happens in order.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "core/check.h"
#include "core/result.h"

namespace millrace::cuda {

/// Calls that fail only where the device is lost or the code is wrong.
#define MILLRACE_CUDA_CHECK(call)                                                                  \
  do {                                                                                             \
    const cudaError_t millrace_error = (call);                                                     \
    MILLRACE_CHECK(millrace_error == cudaSuccess, "CUDA: {}", cudaGetErrorString(millrace_error)); \
  } while (false)

class Device {
 public:
  static constexpr std::int32_t kOldest = 75;  // compute capability

  /// Errors: no driver, no such device, one older than compute capability 7.5, no memory.
  static Result<std::unique_ptr<Device>> open(int number);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  [[nodiscard]] std::int32_t capability() const { return capability_; }  // 86 for 8.6
  [[nodiscard]] std::int32_t multiprocessors() const { return multiprocessors_; }
  [[nodiscard]] cudaStream_t stream() const { return stream_; }
  [[nodiscard]] std::uint64_t free_memory() const;

  /// Zeroed. `purpose` is for the message.
  Result<std::shared_ptr<void>> allocate(std::size_t bytes, const char* purpose);

  /// Host memory that the device copies to by itself.
  Result<std::shared_ptr<void>> allocate_host(std::size_t bytes);

  /// Copies into the stream; the source may change when the call returns.
  void write(void* target, std::span<const std::byte> source);
  /// Waits for the stream, then for the bytes. To memory of allocate_host() they come directly.
  void read(const void* source, std::span<std::byte> target);
  void wait();

 private:
  /// Host memory that the device copies from by itself, and when the last copy from it is done.
  struct Staging {
    std::byte* memory = nullptr;
    cudaEvent_t done = nullptr;
  };
  static constexpr std::size_t kStagingBytes = std::size_t{4} << 20;

  Device() = default;
  Status start(int number);

  std::string name_;
  std::int32_t capability_ = 0, multiprocessors_ = 0;
  cudaStream_t stream_ = nullptr;
  std::array<Staging, 4> staging_ = {};
  std::size_t next_staging_ = 0;
  std::map<const std::byte*, std::size_t> host_memory_;  // start and bytes of what allocate_host() gave
};

/// Device memory that grows when more is asked for. What it held is lost then.
class GrowingMemory {
 public:
  /// At least `bytes`. Whoever grows it must have nothing under way that uses the old memory but in the stream.
  void* at_least(Device& device, std::size_t bytes, const char* purpose);
  [[nodiscard]] bool holds(std::size_t bytes) const { return bytes <= bytes_; }

 private:
  std::shared_ptr<void> memory_;
  std::size_t bytes_ = 0;
};

}  // namespace millrace::cuda
