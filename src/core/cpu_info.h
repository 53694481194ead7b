// What the processor that we run on can do, and how much of it is ours.
#pragma once

#include <string>

namespace millrace {

/// Instruction sets count only where the operating system saves their registers too. All false off x86-64.
struct CpuInfo {
  std::string name;  // "AMD EPYC 7763 64-Core Processor"; empty where the processor does not tell
  bool avx2 = false, fma = false, f16c = false;
  bool avx512 = false;  // F, BW, DQ and VL together: what every AVX-512 server processor has
  bool avx512_vnni = false;
  bool avx512_bf16 = false;  // and VBMI, without which no processor has it but one
  bool avx_vnni = false;     // VNNI on registers of AVX
  bool amx = false;          // tiles, of bytes and of bfloat16; see request_tiles()
};

CpuInfo read_cpu_info();

/// Asks Linux to keep the tiles' registers for this process and all of its threads, which must be before tiles are
/// used. False: it does not.
bool request_tiles();

/// Logical processors that this process may use: the affinity mask, cut by the control group's processor quota (rounded
/// up). At least 1.
int usable_cores();

}  // namespace millrace
