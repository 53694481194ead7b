#include "backend/cpu/device_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "core/memory.h"

namespace millrace {

namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kPage = 4096;
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
    const std::size_t size = (bytes + kPage - 1) / kPage * kPage;
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

}  // namespace millrace
