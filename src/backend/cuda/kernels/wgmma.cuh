// Instructions of compute capability 9.0: barriers and bulk copies in shared memory, and matrix instructions of warp
// groups (PTX ISA, "mbarrier", "cp.async.bulk", "wgmma"). Of use only where __CUDA_ARCH_FEAT_SM90_ALL is defined.
#pragma once

#include "backend/cuda/kernels/cluster.cuh"
#include "backend/cuda/kernels/products.cuh"

namespace millrace::cuda {

/// Calls fn with what a launch multiplies as constants.
template <typename Function>
cudaError_t with_wgmma_product(const MatmulLaunch& launch, Function&& fn) {
  switch (launch.weight.storage) {
    case Storage::bf16:
      return fn.template operator()<Storage::bf16, Product::bf16>();
    case Storage::int8:
      return launch.rounding == Rounding::int8 ? fn.template operator()<Storage::int8, Product::bytes>()
                                               : fn.template operator()<Storage::int8, Product::bf16>();
    case Storage::e4m3:
      return launch.rounding == Rounding::e4m3 ? fn.template operator()<Storage::e4m3, Product::e4m3>()
                                               : fn.template operator()<Storage::e4m3, Product::bf16>();
    default:
      break;
  }
  return cudaErrorInvalidValue;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

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

/// The same in this block.
__device__ inline void arrive(std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_at(barrier)) : "memory");
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

/// The same within the block alone.
__device__ inline void copy_bulk(void* target, const void* source, std::uint32_t bytes, std::uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_at(target)),
               "l"(source), "r"(bytes), "r"(shared_at(barrier))
               : "memory");
}

/// The descriptor of inputs in shared memory: pieces of 8 rows by 16 bytes, each in one piece of 128 bytes, the next
/// along inputs 128 bytes on, the next along rows kRowTile bytes on.
template <int kRowTile>
__device__ inline std::uint64_t inputs_at(const std::byte* start) {
  constexpr std::uint64_t kAlongInputs = 128, kAlongRows = kRowTile;
  return ((shared_at(start) & 0x3ffffu) >> 4) | (kAlongInputs >> 4) << 16 | (kAlongRows >> 4) << 32;
}

/// A span's weights of a warp as operands: four steps of 16 inputs, or two of 32 bytes.
template <Storage kStorage, Product kProduct>
struct SpanOperands {
  static constexpr int kSteps = kEightBits<kProduct> ? 2 : 4;
  std::uint32_t a[kSteps][4];

  __device__ void load(const std::byte* span) {
    RawSpan<kStorage> raw;
    raw.load(span);
    std::uint32_t block[2][4];
    operands<kStorage, kProduct, 0>(raw, 0, 0, block);
    place(0, block);
    operands<kStorage, kProduct, 1>(raw, 0, 0, block);
    place(1, block);
  }

 private:
  __device__ void place(int block_index, const std::uint32_t (&block)[2][4]) {
#pragma unroll
    for (int step = 0; step < kSteps / 2; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[block_index * (kSteps / 2) + step][i] = block[step][i];
    }
  }
};

// An instruction's operands by number: the sums, of as many tiles of rows as it has, then a and b.
#define MILLRACE_SUMS_1 "{%0, %1, %2, %3}"
#define MILLRACE_SUMS_2 "{%0, %1, %2, %3, %4, %5, %6, %7}"
#define MILLRACE_SUMS_4 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}"
#define MILLRACE_SUMS_8                                                     \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define MILLRACE_SUMS_16                                                             \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "          \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define MILLRACE_FACTORS_1 ", {%4, %5, %6, %7}, %8"
#define MILLRACE_FACTORS_2 ", {%8, %9, %10, %11}, %12"
#define MILLRACE_FACTORS_4 ", {%16, %17, %18, %19}, %20"
#define MILLRACE_FACTORS_8 ", {%32, %33, %34, %35}, %36"
#define MILLRACE_FACTORS_16 ", {%64, %65, %66, %67}, %68"
#define MILLRACE_LIST_1(c, n) c(d[n][0]), c(d[n][1]), c(d[n][2]), c(d[n][3])
#define MILLRACE_LIST_2(c, n) MILLRACE_LIST_1(c, n), MILLRACE_LIST_1(c, n + 1)
#define MILLRACE_LIST_4(c, n) MILLRACE_LIST_2(c, n), MILLRACE_LIST_2(c, n + 2)
#define MILLRACE_LIST_8(c, n) MILLRACE_LIST_4(c, n), MILLRACE_LIST_4(c, n + 4)
#define MILLRACE_LIST_16(c, n) MILLRACE_LIST_8(c, n), MILLRACE_LIST_8(c, n + 8)

#define MILLRACE_BEGIN(tiles, instruction, types, c, last)                                                           \
  asm volatile("wgmma.mma_async.sync.aligned." instruction types MILLRACE_SUMS_##tiles MILLRACE_FACTORS_##tiles last \
               : MILLRACE_LIST_##tiles("+" c, 0)                                                                     \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

/// With kRowTiles tiles of 8 rows, 64 outputs of the warp group, 16 of them this warp's: d += a b for 16 inputs of 16
/// bits or 32 of 8. Begins only; a must stay what it is until wait_products(). kTransposed (of 16 bits): in b the rows
/// lie side by side, not the inputs.
template <Product kProduct, int kRowTiles, bool kTransposed = false>
__device__ inline void begin_product(Sum<kProduct> (&d)[kRowTiles][4], const std::uint32_t (&a)[4], std::uint64_t b) {
#define MILLRACE_BEGIN_ALL(tiles, rows)                                                  \
  if constexpr (kRowTiles == tiles) {                                                    \
    static_assert(kProduct != Product::half);                                            \
    if constexpr (kProduct == Product::bf16 && kTransposed) {                            \
      MILLRACE_BEGIN(tiles, "m64n" rows "k16", ".f32.bf16.bf16 ", "f", ", 1, 1, 1, 1;"); \
    } else if constexpr (kProduct == Product::bf16) {                                    \
      MILLRACE_BEGIN(tiles, "m64n" rows "k16", ".f32.bf16.bf16 ", "f", ", 1, 1, 1, 0;"); \
    } else if constexpr (kProduct == Product::e4m3) {                                    \
      MILLRACE_BEGIN(tiles, "m64n" rows "k32", ".f32.e4m3.e4m3 ", "f", ", 1, 1, 1;");    \
    } else {                                                                             \
      MILLRACE_BEGIN(tiles, "m64n" rows "k32", ".s32.s8.s8 ", "r", ", 1;");              \
    }                                                                                    \
  }
  MILLRACE_BEGIN_ALL(1, "8")
  MILLRACE_BEGIN_ALL(2, "16")
  MILLRACE_BEGIN_ALL(4, "32")
  MILLRACE_BEGIN_ALL(8, "64")
  MILLRACE_BEGIN_ALL(16, "128")
#undef MILLRACE_BEGIN_ALL
}

#undef MILLRACE_SUMS_1
#undef MILLRACE_SUMS_2
#undef MILLRACE_SUMS_4
#undef MILLRACE_SUMS_8
#undef MILLRACE_SUMS_16
#undef MILLRACE_FACTORS_1
#undef MILLRACE_FACTORS_2
#undef MILLRACE_FACTORS_4
#undef MILLRACE_FACTORS_8
#undef MILLRACE_FACTORS_16
#undef MILLRACE_LIST_1
#undef MILLRACE_LIST_2
#undef MILLRACE_LIST_4
#undef MILLRACE_LIST_8
#undef MILLRACE_LIST_16
#undef MILLRACE_BEGIN

/// The sum of a part is done: it is added to the total, and the next begins.
template <Product kProduct, int kRowTiles>
__device__ inline void close_part(Sum<kProduct> (&sums)[kRowTiles][4], Sum<kProduct> (&totals)[kRowTiles][4]) {
#pragma unroll
  for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      totals[n][i] += sums[n][i];
      sums[n][i] = 0;
    }
  }
}

/// Stores what the warp has of tile `tile` of outputs and of rows from `first_row_tile` on.
template <Storage kStorage, Product kProduct, int kRowTiles>
__device__ inline void store_totals(const MatmulLaunch& args, std::int64_t tile, std::int64_t first_row_tile,
                                    const Sum<kProduct> (&totals)[kRowTiles][4]) {
  const int lane = threadIdx.x % 32, quad = lane % 4, line = lane / 4;
#pragma unroll
  for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int64_t output = tile * kTileRows + i / 2 * 8 + line,
                         row = (first_row_tile + n) * 8 + quad * 2 + i % 2;
      if (output < args.weight.rows && row < args.rows)
        store_total<kStorage, kProduct, false>(args, output, row, totals[n][i]);
    }
  }
}

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
