// The instruction sets that the CPU backend has kernels for.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace millrace {

/// In the order in which they are preferred.
///   scalar: no instruction beyond the baseline of the platform, products and sums rounded one by one.
///   avx2: AVX2, FMA, F16C.
///   avx_vnni: and the dot product of bytes, as client processors have it.
///   avx512: AVX-512 F, BW, DQ, VL.
///   avx512_vnni: and the dot product of bytes.
///   avx512_bf16: and the dot product of bfloat16, and VBMI.
///   amx: and tiles of bytes and of bfloat16.
enum class IsaLevel : std::uint8_t { scalar, avx2, avx_vnni, avx512, avx512_vnni, avx512_bf16, amx };
inline constexpr std::array kIsaLevels = {
    IsaLevel::scalar,      IsaLevel::avx2,        IsaLevel::avx_vnni, IsaLevel::avx512,
    IsaLevel::avx512_vnni, IsaLevel::avx512_bf16, IsaLevel::amx,
};

std::string_view isa_level_name(IsaLevel level);
/// The lowest level that gives the same bits. From avx2 on, all run the same operations in the same order; but
/// avx512_bf16 and amx have ways of their own to add products of bfloat16, and amx rounds in attention.
IsaLevel numeric_level(IsaLevel level);
/// Its name, and the processor's vendor where bits depend on that.
std::string numeric_level_name(IsaLevel level);

/// Compiled in, and this processor has it.
bool isa_available(IsaLevel level);

IsaLevel best_isa_level();

}  // namespace millrace
