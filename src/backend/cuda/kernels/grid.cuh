// How kernels are put into a stream, and how one may begin before the last has ended (programmatic dependent launch,
// from compute capability 9.0 on): what depends on nothing, such as the first loads of weights, then hides behind the
// end of the kernel before.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace millrace::cuda {

/// Every thread of every kernel calls this before it reads or writes what other kernels write or read, and before it
/// returns: until then the kernel before may still run. That one has then ended, and so have all before it.
__device__ inline void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// From here on blocks of the next kernel may start where there is room.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Whether the current device starts kernels that way, and this build has code for it that waits: devices that run what
/// was made for older ones do not.
inline bool starts_early() {
#if defined(MILLRACE_CUDA_WGMMA) && CUDART_VERSION >= 12030  // graphs know such launches from there on
  static const bool early = [] {
    int device = 0, major = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major == 9;
  }();
  return early;
#else
  return false;
#endif
}

/// kernel<<<grid, threads, shared, stream>>>(args), in clusters of blocks where they are of more than one.
template <typename Args>
cudaError_t start(void (*kernel)(Args), dim3 grid, int threads, std::size_t shared, cudaStream_t stream,
                  const Args& args, dim3 cluster = dim3(1)) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (starts_early()) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster.x * cluster.y * cluster.z > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {cluster.x, cluster.y, cluster.z};
  }
  return cudaLaunchKernelEx(&config, kernel, args);
}

}  // namespace millrace::cuda
