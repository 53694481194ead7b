#pragma once

#include "backend/backend.h"
#include "backend/cuda/device.h"

namespace millrace::cuda {

/// What the device reaches at most: reading memory far larger than its caches, and multiplying numbers that lie in
/// registers, by the instructions that the kernels use. Takes a fraction of a second. Error: no memory for it.
Result<DeviceLimits> measure_cuda_limits(Device& device);

}  // namespace millrace::cuda
