#include "backend/cpu/isa_level.h"

#include "backend/cpu/kernel_table.h"
#include "core/cpu_info.h"

namespace millrace {

std::string_view isa_level_name(IsaLevel level) {
  switch (level) {
    case IsaLevel::scalar:
      return "scalar";
    case IsaLevel::avx2:
      return "avx2";
    case IsaLevel::avx512:
      return "avx512";
  }
  return "?";
}

bool isa_available(IsaLevel level) {
  if (level == IsaLevel::scalar) return true;
#if defined(__x86_64__)
  const CpuInfo cpu = read_cpu_info();
  const bool avx2 = cpu.avx2 && cpu.fma && cpu.f16c;
  return level == IsaLevel::avx2 ? avx2 : avx2 && cpu.avx512;
#else
  return false;
#endif
}

IsaLevel best_isa_level() {
  if (isa_available(IsaLevel::avx512)) return IsaLevel::avx512;
  return isa_available(IsaLevel::avx2) ? IsaLevel::avx2 : IsaLevel::scalar;
}

const KernelTable& kernel_table(IsaLevel level) {
#if defined(__x86_64__)
  if (level == IsaLevel::avx512) return kAvx512Kernels;
  if (level == IsaLevel::avx2) return kAvx2Kernels;
#endif
  (void)level;
  return kScalarKernels;
}

}  // namespace millrace
