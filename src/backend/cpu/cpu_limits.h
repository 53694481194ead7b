// What the processor and its memory reach at most, with the pool's threads and the level's instructions.
#pragma once

#include "backend/backend.h"
#include "backend/cpu/kernel_table.h"
#include "core/result.h"
#include "core/thread_pool.h"

namespace millrace {

/// The best of a few short runs each. Error: no memory to read.
Result<DeviceLimits> measure_cpu_limits(const KernelTable& kernels, ThreadPool& pool);

}  // namespace millrace
