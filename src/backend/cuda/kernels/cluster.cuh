// Blocks of a cluster and each other's shared memory (PTX ISA, "mapa", "barrier.cluster"). Of use from compute
// capability 9.0 on.
#pragma once

#include <cstdint>

namespace millrace::cuda {

__device__ inline std::uint32_t shared_at(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

#if __CUDA_ARCH__ >= 900

__device__ inline std::uint32_t cluster_rank() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/// All threads of all blocks of the cluster.
__device__ inline void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// A word of the shared memory of block `rank` of the cluster, at the place where `word` is in this one's.
__device__ inline std::uint32_t read_shared_of(const void* word, std::uint32_t rank) {
  std::uint32_t value;
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %1, %2;\n"
      "ld.shared::cluster.u32 %0, [there];\n"
      "}\n"
      : "=r"(value)
      : "r"(shared_at(word)), "r"(rank)
      : "memory");
  return value;
}

__device__ inline void write_shared_of(float* word, std::uint32_t rank, float value) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "st.shared::cluster.f32 [there], %2;\n"
      "}\n" ::"r"(shared_at(word)),
      "r"(rank), "f"(value)
      : "memory");
}

#else

// So that what only newer devices run compiles for older ones too.
__device__ inline void sync_cluster() {}
__device__ inline void write_shared_of(float* /*word*/, std::uint32_t /*rank*/, float /*value*/) {}

#endif

}  // namespace millrace::cuda
