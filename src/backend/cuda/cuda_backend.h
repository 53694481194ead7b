// The CUDA backend: NVIDIA GPUs from compute capability 7.5 on. In builds without nvcc its functions say so.
//
// Numeric class: "cuda/sm90/1". Operations are collected and started together, when a result is read or the next step
// begins; steps that repeat run as CUDA graphs. docs/cuda.md has the decisions.
#pragma once

#include <memory>

#include "backend/backend.h"
#include "core/result.h"

namespace millrace {

struct CudaBackendOptions {
  int threads = 0;  // that pack weights; 0: usable_cores()
};

/// Whether this build has the backend and the machine a device that it runs on.
bool cuda_available();

/// On the first device that CUDA sees. Errors: a build without CUDA; no driver, no device, or one that is too old; no
/// memory.
/// One operation at a time: the backend is used from one thread.
Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaBackendOptions& options = {});

}  // namespace millrace
