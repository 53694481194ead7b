#include "backend/cpu/thread_scratch.h"

#include "backend/cpu/device_memory.h"
#include "backend/cpu/kernel_table.h"
#include "core/check.h"

namespace millrace {

void ThreadScratch::reserve(std::int64_t floats) {
  if (floats <= floats_) return;
  constexpr std::int64_t kHugePage = (2 << 20) / sizeof(float);
  floats_ = round_up(floats, kHugePage);
  auto memory = allocate_device_memory(static_cast<std::size_t>(floats_ * threads_) * sizeof(float), "scratch memory");
  MILLRACE_CHECK(memory.ok(), "{}", memory.error().message);
  memory_ = std::move(*memory);
}

}  // namespace millrace
