#include "core/cpu_info.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <thread>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace millrace {

#if defined(__x86_64__)

namespace {

struct Registers {
  std::uint32_t a = 0, b = 0, c = 0, d = 0;
};

/// Zeros where the processor does not know the leaf.
Registers cpuid(std::uint32_t leaf, std::uint32_t subleaf = 0) {
  Registers r;
  if (__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d) == 0) return {};
  return r;
}

bool bit(std::uint32_t word, int index) {
  return ((word >> index) & 1u) != 0;
}

/// XCR0: which register files the operating system saves at a context switch.
std::uint64_t saved_state() {
  std::uint32_t low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (std::uint64_t{high} << 32) | low;
}

constexpr std::uint64_t kTiles = 0x60000;  // of XCR0, and of what Linux has

/// What Linux would keep for a process that asks.
bool tiles_supported() {
  std::uint64_t features = 0;
#if defined(__linux__)
  constexpr long kSupported = 0x1021;  // ARCH_GET_XCOMP_SUPP
  if (syscall(SYS_arch_prctl, kSupported, &features) != 0) return false;
#endif
  return (features & kTiles) == kTiles;
}

std::string brand() {
  std::array<char, 49> text{};
  for (std::uint32_t i = 0; i < 3; ++i) {
    const Registers r = cpuid(0x80000002u + i);
    std::memcpy(text.data() + 16 * i, &r, 16);
  }
  std::string name(text.data());
  while (!name.empty() && name.back() == ' ') name.pop_back();
  return name.substr(std::min(name.find_first_not_of(' '), name.size()));
}

}  // namespace

CpuInfo read_cpu_info() {
  CpuInfo info;
  info.name = brand();
  const Registers basic = cpuid(1);
  const bool saves_any = bit(basic.c, 27);  // OSXSAVE: xgetbv may be used
  const std::uint64_t saved = saves_any ? saved_state() : 0;
  constexpr std::uint64_t kYmm = 0x6, kZmm = 0xe6;
  if ((saved & kYmm) != kYmm) return info;
  const Registers extended = cpuid(7, 0);
  info.avx2 = bit(basic.c, 28) && bit(extended.b, 5);
  info.fma = bit(basic.c, 12);
  info.f16c = bit(basic.c, 29);
  info.avx_vnni = info.avx2 && bit(cpuid(7, 1).a, 4);
  if ((saved & kZmm) != kZmm) return info;
  const auto& b = extended.b;
  info.avx512 = bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);
  info.avx512_vnni = info.avx512 && bit(extended.c, 11);
  info.avx512_bf16 = info.avx512 && bit(extended.c, 1) && bit(cpuid(7, 1).a, 5);
  const bool tiles = bit(extended.d, 22) && bit(extended.d, 24) && bit(extended.d, 25);
  info.amx = tiles && (saved & kTiles) == kTiles && tiles_supported();
  return info;
}

#else

CpuInfo read_cpu_info() {
  return {};
}

#endif

bool request_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

int usable_cores() {
  // The C library counts the affinity mask here, not the machine.
  int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::int64_t quota = 0, period = 0;
  if (file >> quota >> period && quota > 0 && period > 0) {  // "max" instead of a number: no quota
    cores = static_cast<int>(std::clamp<std::int64_t>((quota + period - 1) / period, 1, cores));
  }
  return cores;
}

}  // namespace millrace
