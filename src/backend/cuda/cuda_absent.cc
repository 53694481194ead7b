// What builds without nvcc have in place of the backend.
#include "backend/cuda/cuda_backend.h"

namespace millrace {

bool cuda_available() {
  return false;
}

Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaBackendOptions& /*options*/) {
  return fail(
      "this build has no CUDA backend: there was no nvcc when it was configured, or it was left out; run "
      "tools/bootstrap --cuda and build again (docs/cuda.md), or use --device cpu");
}

}  // namespace millrace
