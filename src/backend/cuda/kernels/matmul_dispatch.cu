// Which kernel multiplies what.
#include "backend/cuda/kernels/launch.h"

namespace millrace::cuda {

namespace {

/// What the matrix instructions of compute capability 8.0 serve for.
bool in_tiles_for(const WeightView& weight, Rounding rounding) {
  const std::int32_t group = weight.group;
  const bool whole_groups = group == 16 || (group >= kBlockCols && (kSpanCols % group == 0 || group % kSpanCols == 0));
  const bool bytes_or_bf16 = rounding == Rounding::int8 || rounding == Rounding::bf16;
  switch (weight.storage) {
    case Storage::bf16:
      return rounding == Rounding::bf16;
    case Storage::int8:
      return group == 0 && weight.zeros == nullptr && bytes_or_bf16;
    case Storage::e4m3:
      return group == 0 && (rounding == Rounding::e4m3 || rounding == Rounding::bf16);
    case Storage::int4:
      return group != 16 && whole_groups && bytes_or_bf16;
    case Storage::e2m1:
      return whole_groups && bytes_or_bf16;
    case Storage::rows_f32:
    case Storage::rows_f16:
      break;
  }
  return false;
}

}  // namespace

bool have_wgmma(std::int32_t capability) {
#if defined(MILLRACE_CUDA_WGMMA)
  return capability == 90;
#else
  return capability < 0;  // never
#endif
}

ProductKernel choose_product(std::int32_t capability, std::int32_t multiprocessors, const WeightView& weight,
                             Rounding rounding, std::int64_t rows) {
  if (capability < 80 || !in_tiles_for(weight, rounding)) return ProductKernel::dot;
  constexpr std::int64_t kFewRows = 64, kTile = 128;
  const std::int64_t blocks = (rows + kTile - 1) / kTile * ((weight.rows + kTile - 1) / kTile);
  const bool few = rows <= kFewRows || 2 * blocks < multiprocessors;
  const bool plain =
      weight.storage == Storage::bf16 || weight.storage == Storage::int8 || weight.storage == Storage::e4m3;
  if (!have_wgmma(capability) || !plain) return few ? ProductKernel::few : ProductKernel::many;
  if (!few) return ProductKernel::wgmma;
  // Of E4M3 with E4M3 the sums are those of one instruction only. Others are faster by it from some rows on, those
  // whose weights have to be widened for it never (measured on an H200).
  if (weight.storage == Storage::e4m3 && rounding == Rounding::e4m3) return ProductKernel::few_wgmma;
  const bool widened = weight.storage != Storage::bf16 && rounding == Rounding::bf16;
  const std::int64_t most = weight.storage == Storage::bf16 ? 8 : 16;
  return rows > most && !widened ? ProductKernel::few_wgmma : ProductKernel::few;
}

cudaError_t multiply(const MatmulLaunch& launch, cudaStream_t stream) {
  switch (launch.kernel) {
    case ProductKernel::dot:
      return dot(launch, stream);
    case ProductKernel::few:
      return matmul_few(launch, stream);
    case ProductKernel::few_wgmma:
      return matmul_few_wgmma(launch, stream);
    case ProductKernel::many:
      return matmul_many(launch, stream);
    case ProductKernel::wgmma:
      break;
  }
  return matmul_wgmma(launch, stream);
}

}  // namespace millrace::cuda
