// The instruction sets that the CPU backend has kernels for.
#pragma once

#include <cstdint>
#include <string_view>

namespace millrace {

/// scalar: no instruction beyond the baseline of the platform, products and sums rounded one by one.
/// avx2: AVX2, FMA, F16C. avx512: AVX-512 F, BW, DQ, VL; computes the same bits as avx2.
enum class IsaLevel : std::uint8_t { scalar, avx2, avx512 };

std::string_view isa_level_name(IsaLevel level);

/// Compiled in, and this processor has it.
bool isa_available(IsaLevel level);

IsaLevel best_isa_level();

}  // namespace millrace
