#include "backend/cpu/device_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <utility>

#include "core/memory.h"

namespace millrace {

namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kLargePiece = std::size_t{16} << 20;
constexpr std::size_t kChunk = std::size_t{64} << 20;  // takes memory as it is touched
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif
constexpr std::size_t kLine = 64;

/// A mapping that starts at a multiple of kHugePage; null if there is no room.
std::byte* map_aligned(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  auto* start = static_cast<std::byte*>(memory);
  const std::size_t skip = (kHugePage - reinterpret_cast<std::uintptr_t>(start) % kHugePage) % kHugePage;
  if (skip != 0) munmap(start, skip);
  if (skip != kHugePage) munmap(start + skip + bytes, kHugePage - skip);
  return start + skip;
}

}  // namespace

Result<std::shared_ptr<void>> allocate_device_memory(std::size_t bytes, const char* purpose) {
  const auto refuse = [&] { return fail("cannot allocate {} for {}", format_size(bytes), purpose); };
  if (bytes > std::numeric_limits<std::size_t>::max() / 2) return refuse();
  if (bytes >= kHugePage) {
    const std::size_t size = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    std::byte* memory = map_aligned(size);
    if (memory == nullptr) return refuse();
    madvise(memory, size, MADV_HUGEPAGE);  // only advice: without huge pages it is slower and as right
    return std::shared_ptr<void>(memory, [size](void* p) { munmap(p, size); });
  }
  const std::size_t size = (bytes + kLine) / kLine * kLine;  // never nothing
  void* memory = std::aligned_alloc(kLine, size);
  if (memory == nullptr) return refuse();
  std::memset(memory, 0, size);
  return std::shared_ptr<void>(memory, [](void* p) { std::free(p); });
}

Result<std::shared_ptr<void>> DeviceArena::allocate(std::size_t bytes, const char* purpose) {
  // A large piece fills its pages; and the sanitizer should see the end of each.
  if (kSanitized || bytes > kLargePiece) return allocate_device_memory(bytes, purpose);
  const std::size_t size = (bytes + kLine) / kLine * kLine;
  std::shared_ptr<void> chunk = chunk_.lock();
  if (chunk == nullptr || size > kChunk - used_) {
    auto fresh = allocate_device_memory(kChunk, purpose);
    if (!fresh.ok()) return allocate_device_memory(bytes, purpose);
    chunk = std::move(*fresh);
    chunk_ = chunk;
    used_ = 0;
  }
  std::shared_ptr<void> piece(chunk, static_cast<std::byte*>(chunk.get()) + used_);
  used_ += size;
  return piece;
}

}  // namespace millrace
