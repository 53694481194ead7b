#include "backend/cpu/isa_level.h"

#include <string>

#include "backend/cpu/kernel_table.h"
#include "core/cpu_info.h"

namespace millrace {

namespace {

/// `better` where it has something, else what there is.
KernelTable improved(KernelTable kernels, const ProductKernels& better) {
  ProductKernels& products = kernels.products;
  if (better.multiply_integers != nullptr) products.multiply_integers = better.multiply_integers;
  if (better.multiply_pairs != nullptr) products.multiply_pairs = better.multiply_pairs;
  if (better.attend_rounded != nullptr) products.attend_rounded = better.attend_rounded;
  if (better.score_cells_rounded != nullptr) products.score_cells_rounded = better.score_cells_rounded;
  if (better.skip_pairs != nullptr) {
    products.skip_pairs = better.skip_pairs;
    products.pair_order = better.pair_order;
  }
  if (better.skip_integers != nullptr) products.skip_integers = better.skip_integers;
  if (better.multiply_neuron_codes != nullptr) {
    products.multiply_neuron_codes = better.multiply_neuron_codes;
    products.add_neuron_codes = better.add_neuron_codes;
  }
  for (std::size_t a = 0; a < kArithmetics; ++a) {
    if (better.multiply_add[a] != nullptr) products.multiply_add[a] = better.multiply_add[a];
  }
  return kernels;
}

}  // namespace

std::string_view isa_level_name(IsaLevel level) {
  switch (level) {
    case IsaLevel::scalar:
      return "scalar";
    case IsaLevel::avx2:
      return "avx2";
    case IsaLevel::avx_vnni:
      return "avx_vnni";
    case IsaLevel::avx512:
      return "avx512";
    case IsaLevel::avx512_vnni:
      return "avx512_vnni";
    case IsaLevel::avx512_bf16:
      return "avx512_bf16";
    case IsaLevel::amx:
      return "amx";
  }
  return "?";
}

IsaLevel numeric_level(IsaLevel level) {
  const bool own = level == IsaLevel::scalar || level == IsaLevel::avx512_bf16 || level == IsaLevel::amx;
  return own ? level : IsaLevel::avx2;
}

std::string numeric_level_name(IsaLevel level) {
  std::string name(isa_level_name(numeric_level(level)));
  // In which order a dot product of bfloat16 adds its two products is not known to be the same everywhere.
  if (level == IsaLevel::avx512_bf16) name += read_cpu_info().name.starts_with("AMD") ? "_amd" : "_intel";
  return name;
}

bool isa_available(IsaLevel level) {
  if (level == IsaLevel::scalar) return true;
#if defined(__x86_64__)
  const CpuInfo cpu = read_cpu_info();
  if (!cpu.avx2 || !cpu.fma || !cpu.f16c) return false;
  switch (level) {
    case IsaLevel::avx_vnni:
      return cpu.avx_vnni;
    case IsaLevel::avx512:
      return cpu.avx512;
    case IsaLevel::avx512_vnni:
      return cpu.avx512_vnni;
    case IsaLevel::avx512_bf16:
      return cpu.avx512_vnni && cpu.avx512_bf16;
    case IsaLevel::amx:
      return cpu.avx512_vnni && cpu.avx512_bf16 && cpu.amx;
    default:
      return true;
  }
#else
  return false;
#endif
}

IsaLevel best_isa_level() {
  for (auto level = kIsaLevels.rbegin(); level != kIsaLevels.rend(); ++level) {
    if (isa_available(*level)) return *level;
  }
  return IsaLevel::scalar;
}

KernelTable kernel_table(IsaLevel level) {
#if defined(__x86_64__)
  switch (level) {
    case IsaLevel::scalar:
      break;
    case IsaLevel::avx2:
      return kAvx2Kernels;
    case IsaLevel::avx_vnni:
      return improved(kAvx2Kernels, kAvxVnniProducts);
    case IsaLevel::avx512:
      return kAvx512Kernels;
    case IsaLevel::avx512_vnni:
      return improved(kAvx512Kernels, kAvx512VnniProducts);
    case IsaLevel::avx512_bf16:
      return improved(improved(kAvx512Kernels, kAvx512VnniProducts), kAvx512Bf16Products);
    case IsaLevel::amx:
      return improved(improved(kAvx512Kernels, kAvx512VnniProducts), kAmxProducts);
  }
#endif
  (void)level;
  return kScalarKernels;
}

}  // namespace millrace
