// Weights as small integers times scales, with 8-bit inputs. The codec here defines them; backends compute with the
// codes. docs/number-formats.md has the layouts.
//
//   int8          8 bits, a scale for each output ("per channel"), symmetric: codes -127 to 127
//   int4[.gN]     4 bits, a scale and a zero point for each group of N inputs of an output (32, 64, 128; 128 if not
//                 said): codes 0 to 15, and 0.0 is always one of the values
//   int4[.gN].sym the same without a zero point: codes 0 to 15 with zero 8
//   nvfp4         4 bits, E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, twice which are integers. A scale E4M3
//                 for each group of 16 inputs, and a float for each output
//   mxfp4         the same with a power of two for each group of 32 (OCP Microscaling Formats 1.0)
//
// value = row scale * scale * (code - zero), or with E2M1 row scale * scale * step of the code; where the format has no
// row scale it is 1. Inputs are rounded to 8 bits with a scale for each row ("per token") and group of the weight, or
// two groups of 16. Sources: Jacob et al. 2018 (affine integer quantisation); Dettmers et al. 2022, "LLM.int8()"
// (per-token and per-channel scales).
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "quant/small_float.h"

namespace millrace {

/// Inputs are rounded in whole numbers of these, and padded to them.
inline constexpr std::int32_t kIntegerBlock = 32;

struct IntegerFormat {
  std::int32_t bits = 8;   // 8 or 4
  std::int32_t group = 0;  // inputs that share a scale: 16, or a multiple of kIntegerBlock; 0: all of an output's
  bool symmetric = true;   // no zero points
  bool e2m1 = false;       // 4-bit codes are those of E2M1; scales are E4M3 for groups of 16, powers of two for 32
  bool operator==(const IntegerFormat&) const = default;

  [[nodiscard]] std::int64_t groups(std::int64_t cols) const { return group == 0 ? 1 : (cols + group - 1) / group; }
  /// Inputs of a row that share a scale of theirs; 0: all.
  [[nodiscard]] std::int64_t input_group() const { return group == 0 ? 0 : std::max(group, kIntegerBlock); }
};

/// The zero of 4-bit codes without zero points.
inline constexpr std::int32_t kSymmetricZero = 8;

/// "int8", "int4", "int4.g32", "int4.g64.sym", "nvfp4", ...; nothing for any other name.
std::optional<IntegerFormat> integer_format_from_name(std::string_view name);
std::string integer_format_name(const IntegerFormat& format);

/// Where the codes of an output go: codes [cols] (as they are in memory: int8, or 0 to 15), scales and zeros [groups].
struct IntegerRow {
  std::int8_t* codes = nullptr;
  float* scales = nullptr;        // of 4 bits: representable in half precision
  std::uint8_t* zeros = nullptr;  // 0 to 15; of 8 bits and E2M1 always 0
  float* row_scale = nullptr;     // 1 unless E2M1
};

/// What a code stands for before it is scaled.
inline std::int32_t step_of_code(const IntegerFormat& format, std::int8_t code, std::uint8_t zero) {
  return format.e2m1 ? kE2m1Steps[code & 15] : code - zero;
}

/// Rounds an output's weights to the nearest codes, ties to even. `weights` [cols] must be finite.
void quantize_row(const IntegerFormat& format, const float* weights, std::int64_t cols, const IntegerRow& target);

/// Rounds a row of inputs, `group` of them (0: all) with one scale: codes [cols] in -127 to 127, scales [groups], each
/// max |x| / 127, 0 for a group of zeros. A group with a value that is not finite gets a scale that is not finite, and
/// so results that are not.
void quantize_inputs(const float* x, std::int64_t cols, std::int64_t group, std::int8_t* codes, float* scales);

}  // namespace millrace
