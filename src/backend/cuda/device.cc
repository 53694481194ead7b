#include "backend/cuda/device.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "core/memory.h"

namespace millrace::cuda {

Result<std::unique_ptr<Device>> Device::open(int number) {
  std::unique_ptr<Device> device(new Device());
  MILLRACE_CHECK_OK(device->start(number));
  return device;
}

Status Device::start(int number) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    return fail("no CUDA device can be used: {}", cudaGetErrorString(error));
  }
  if (number < 0 || number >= count) return fail("there is no CUDA device {}: this machine has {}", number, count);
  cudaDeviceProp properties;
  const auto failed = [](cudaError_t error) { return fail("CUDA: {}", cudaGetErrorString(error)); };
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, number); error != cudaSuccess) {
    return failed(error);
  }
  name_ = properties.name;
  capability_ = properties.major * 10 + properties.minor;
  multiprocessors_ = properties.multiProcessorCount;
  if (capability_ < kOldest) {
    return fail("CUDA device {} ({}) has compute capability {}.{}; 7.5 is the oldest that is supported", number, name_,
                properties.major, properties.minor);
  }
  if (const cudaError_t error = cudaSetDevice(number); error != cudaSuccess) return failed(error);
  if (const cudaError_t error = cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking); error != cudaSuccess) {
    return failed(error);
  }
  for (Staging& staging : staging_) {
    void* memory = nullptr;
    if (const cudaError_t error = cudaMallocHost(&memory, kStagingBytes); error != cudaSuccess) return failed(error);
    staging.memory = static_cast<std::byte*>(memory);
    if (const cudaError_t error = cudaEventCreateWithFlags(&staging.done, cudaEventDisableTiming);
        error != cudaSuccess) {
      return failed(error);
    }
  }
  return Ok{};
}

Device::~Device() {
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  for (const Staging& staging : staging_) {
    if (staging.done != nullptr) cudaEventDestroy(staging.done);
    if (staging.memory != nullptr) cudaFreeHost(staging.memory);
  }
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

std::uint64_t Device::free_memory() const {
  std::size_t free = 0, total = 0;
  MILLRACE_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return free;
}

Result<std::shared_ptr<void>> Device::allocate(std::size_t bytes, const char* purpose) {
  void* memory = nullptr;
  const std::size_t size = std::max<std::size_t>(bytes, 1);
  if (const cudaError_t error = cudaMalloc(&memory, size); error != cudaSuccess) {
    cudaGetLastError();  // a later call must not report it again
    return fail("cannot allocate {} on {} for {}: {}", format_size(bytes), name_, purpose, cudaGetErrorString(error));
  }
  std::shared_ptr<void> owned(memory, [](void* p) { cudaFree(p); });
  MILLRACE_CUDA_CHECK(cudaMemsetAsync(memory, 0, size, stream_));
  return owned;
}

Result<std::shared_ptr<void>> Device::allocate_host(std::size_t bytes) {
  void* memory = nullptr;
  const std::size_t size = std::max<std::size_t>(bytes, 1);
  if (const cudaError_t error = cudaMallocHost(&memory, size); error != cudaSuccess) {
    cudaGetLastError();  // a later call must not report it again
    return fail("cannot allocate {} of host memory that {} reaches: {}", format_size(bytes), name_,
                cudaGetErrorString(error));
  }
  host_memory_[static_cast<std::byte*>(memory)] = size;
  return std::shared_ptr<void>(memory, [](void* p) { cudaFreeHost(p); });
}

void Device::write(void* target, std::span<const std::byte> source) {
  auto* to = static_cast<std::byte*>(target);
  while (!source.empty()) {
    Staging& staging = staging_[next_staging_];
    next_staging_ = (next_staging_ + 1) % staging_.size();
    MILLRACE_CUDA_CHECK(cudaEventSynchronize(staging.done));
    const std::size_t bytes = std::min(source.size(), kStagingBytes);
    std::memcpy(staging.memory, source.data(), bytes);
    MILLRACE_CUDA_CHECK(cudaMemcpyAsync(to, staging.memory, bytes, cudaMemcpyHostToDevice, stream_));
    MILLRACE_CUDA_CHECK(cudaEventRecord(staging.done, stream_));
    source = source.subspan(bytes);
    to += bytes;
  }
}

void Device::read(const void* source, std::span<std::byte> target) {
  const auto* from = static_cast<const std::byte*>(source);
  const auto after = host_memory_.upper_bound(target.data());
  if (after != host_memory_.begin()) {
    const auto& [start, size] = *std::prev(after);
    if (target.data() + target.size() <= start + size) {
      MILLRACE_CUDA_CHECK(cudaMemcpyAsync(target.data(), from, target.size(), cudaMemcpyDeviceToHost, stream_));
      return wait();
    }
  }
  while (!target.empty()) {
    Staging& staging = staging_[next_staging_];
    next_staging_ = (next_staging_ + 1) % staging_.size();
    MILLRACE_CUDA_CHECK(cudaEventSynchronize(staging.done));
    const std::size_t bytes = std::min(target.size(), kStagingBytes);
    MILLRACE_CUDA_CHECK(cudaMemcpyAsync(staging.memory, from, bytes, cudaMemcpyDeviceToHost, stream_));
    wait();
    std::memcpy(target.data(), staging.memory, bytes);
    target = target.subspan(bytes);
    from += bytes;
  }
}

void Device::wait() {
  MILLRACE_CUDA_CHECK(cudaStreamSynchronize(stream_));
}

void* GrowingMemory::at_least(Device& device, std::size_t bytes, const char* purpose) {
  if (bytes > bytes_) {
    device.wait();
    memory_.reset();
    bytes_ = 0;
    const std::size_t size = std::max(bytes + bytes / 2, std::size_t{1} << 16);
    auto memory = device.allocate(size, purpose);
    MILLRACE_CHECK(memory.ok(), "{}", memory.error().message);
    memory_ = std::move(*memory);
    bytes_ = size;
  }
  return memory_.get();
}

}  // namespace millrace::cuda
