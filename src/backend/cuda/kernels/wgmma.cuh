// Instructions of compute capability 9.0: barriers and bulk copies in shared memory, and matrix instructions of warp
// groups (PTX ISA, "mbarrier", "cp.async.bulk", "wgmma"). Of use only where __CUDA_ARCH_FEAT_SM90_ALL is defined.
#pragma once

#include "backend/cuda/kernels/products.cuh"

namespace millrace::cuda {

/// Rows of inputs that an instruction multiplies 64 outputs with, in tiles of 8.
inline constexpr int kWgmmaRowTiles = 16;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ inline std::uint32_t shared_at(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ inline void init_barrier(std::uint64_t* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_at(barrier)), "r"(count) : "memory");
}

/// At the barrier that block `rank` of the cluster has there. For readers who have done reading: what they wrote is not
/// made seen in other blocks, which would take a fence for the whole device.
__device__ inline void arrive(std::uint64_t* barrier, std::uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}\n" ::"r"(shared_at(barrier)),
      "r"(rank)
      : "memory");
}

__device__ inline std::uint32_t cluster_rank() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/// All threads of all blocks of the cluster.
__device__ inline void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// Arrives, and expects bytes of copies besides.
__device__ inline void arrive_expecting(std::uint64_t* barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_at(barrier)), "r"(bytes)
               : "memory");
}

/// Waits until the phase of this parity is over.
__device__ inline void wait(std::uint64_t* barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_at(barrier)),
      "r"(parity)
      : "memory");
}

/// Begins to copy to where `target` is in the blocks of the cluster whose bits are set; each one's barrier hears of it.
__device__ inline void copy_bulk_to(void* target, const void* source, std::uint32_t bytes, std::uint64_t* barrier,
                                    std::uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], "
      "%4;" ::"r"(shared_at(target)),
      "l"(source), "r"(bytes), "r"(shared_at(barrier)), "h"(blocks)
      : "memory");
}

/// The descriptor of inputs in shared memory: pieces of 8 rows by 16 bytes, each in one piece of 128 bytes, the next
/// along inputs 128 bytes on, the next along rows a row tile's span on.
template <Product kProduct>
__device__ inline std::uint64_t inputs_at(const std::byte* start) {
  constexpr std::uint64_t kAlongInputs = 128, kAlongRows = kInputSpan<kProduct>;
  return ((shared_at(start) & 0x3ffffu) >> 4) | (kAlongInputs >> 4) << 16 | (kAlongRows >> 4) << 32;
}

#define MILLRACE_SUMS_64                                                             \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "          \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define MILLRACE_FOUR(c, n) c(d[n][0]), c(d[n][1]), c(d[n][2]), c(d[n][3])
#define MILLRACE_SIXTEEN(c, n) \
  MILLRACE_FOUR(c, n), MILLRACE_FOUR(c, n + 1), MILLRACE_FOUR(c, n + 2), MILLRACE_FOUR(c, n + 3)
#define MILLRACE_ALL(c) MILLRACE_SIXTEEN(c, 0), MILLRACE_SIXTEEN(c, 4), MILLRACE_SIXTEEN(c, 8), MILLRACE_SIXTEEN(c, 12)

/// d += a b: 64 outputs of the warp group, 16 of them this warp's, by 128 rows, 16 inputs of 16 bits or 32 of 8. Begins
/// only; a must stay what it is until wait_products().
template <Product kProduct>
__device__ inline void begin_product(Sum<kProduct> (&d)[kWgmmaRowTiles][4], const std::uint32_t (&a)[4],
                                     std::uint64_t b) {
  if constexpr (kProduct == Product::bf16) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " MILLRACE_SUMS_64
                 ", {%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
                 : MILLRACE_ALL("+f")
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else if constexpr (kProduct == Product::half) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " MILLRACE_SUMS_64
                 ", {%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
                 : MILLRACE_ALL("+f")
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 " MILLRACE_SUMS_64 ", {%64, %65, %66, %67}, %68, 1;"
                 : MILLRACE_ALL("+r")
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }
}

#undef MILLRACE_SUMS_64
#undef MILLRACE_FOUR
#undef MILLRACE_SIXTEEN
#undef MILLRACE_ALL

__device__ inline void fence_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Until all but the newest kLeft groups are done.
template <int kLeft>
__device__ inline void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace millrace::cuda
