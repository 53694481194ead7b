// The CPU backend: packed weights, a thread pool, and kernels for the instructions that the processor has.
//
// Numeric classes: "cpu/scalar/4", "cpu/avx2/4" for most levels, and what numeric_level_name() says of the others. The
// thread count never enters a result.
#pragma once

#include <memory>
#include <optional>

#include "backend/backend.h"
#include "backend/cpu/isa_level.h"
#include "core/result.h"

namespace millrace {

struct CpuBackendOptions {
  int threads = 0;                   // 0: usable_cores() of core/cpu_info.h
  std::optional<IsaLevel> isa = {};  // empty: the best that the processor has
};

/// Errors: the processor lacks the ISA level asked for; a thread count that is not possible; no memory.
/// One operation at a time: the backend is used from one thread.
Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuBackendOptions& options = {});

}  // namespace millrace
