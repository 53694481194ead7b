// What the processor that we run on can do, and how much of it is ours.
#pragma once

#include <string>

namespace millrace {

/// Instruction sets count only where the operating system saves their registers too. All false off x86-64.
struct CpuInfo {
  std::string name;  // "AMD EPYC 7763 64-Core Processor"; empty where the processor does not tell
  bool avx2 = false, fma = false, f16c = false;
  bool avx512 = false;  // F, BW, DQ and VL together: what every AVX-512 server processor has
  bool avx512_vnni = false, avx512_bf16 = false;
};

CpuInfo read_cpu_info();

/// Logical processors that this process may use: the affinity mask, cut by the control group's processor quota (rounded
/// up). At least 1.
int usable_cores();

}  // namespace millrace
