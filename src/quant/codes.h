// Weights as small numbers times scales, with 8-bit inputs. The codec here defines them; backends compute with the
// codes. docs/number-formats.md has the layouts.
//
//   int8          8 bits, a scale for each output ("per channel"), symmetric: codes -127 to 127
//   int4[.gN]     4 bits, a scale and a zero point for each group of N inputs of an output (32, 64, 128; 128 if not
//                 said): codes 0 to 15, and 0.0 is always one of the values
//   int4[.gN].sym the same without a zero point: codes 0 to 15 with zero 8
//   nvfp4         4 bits, E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, twice which are integers. A scale E4M3
//                 for each group of 16 inputs, and a float for each output
//   mxfp4         the same with a power of two for each group of 32 (OCP Microscaling Formats 1.0)
//   fp8_e4m3      8 bits, E4M3, a scale for each output
//   *.a16         any of these with inputs that stay what they are
//
// value = row scale * scale * (code - zero), or with E2M1 and E4M3 row scale * scale * step of the code; where the
// format has no row scale it is 1. Else inputs are rounded to 8-bit integers with a scale for each row ("per token")
// and group of the weight, or two groups of 16; for fp8_e4m3 to E4M3 with a scale for each row. Sources: Jacob et al.
// 2018 (affine integer quantisation); Dettmers et al. 2022, "LLM.int8()" (per-token and per-channel scales);
// Micikevicius et al. 2022, "FP8 formats for deep learning".
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

/// What a code stands for before it is scaled: an integer of 8 bits, one of 4 less a zero, the step of an E2M1, an
/// E4M3.
enum class CodeKind : std::uint8_t { int8, int4, e2m1, e4m3 };

struct CodeFormat {
  CodeKind kind = CodeKind::int8;
  std::int32_t group = 0;  // inputs that share a scale: 16, or a multiple of kIntegerBlock; 0: all of an output's
  bool symmetric = true;   // int4: no zero points
  bool float_inputs = false;
  bool operator==(const CodeFormat&) const = default;

  [[nodiscard]] bool four_bits() const { return kind == CodeKind::int4 || kind == CodeKind::e2m1; }
  [[nodiscard]] std::int64_t groups(std::int64_t cols) const { return group == 0 ? 1 : (cols + group - 1) / group; }
  /// Inputs of a row that share a scale of theirs; 0: all.
  [[nodiscard]] std::int64_t input_group() const { return group == 0 ? 0 : std::max(group, kIntegerBlock); }
};

/// The zero of 4-bit codes without zero points.
inline constexpr std::int32_t kSymmetricZero = 8;

/// "int8", "int4", "int4.g32", "int4.g64.sym.a16", "nvfp4", "fp8_e4m3", ...; nothing for any other name.
std::optional<CodeFormat> code_format_from_name(std::string_view name);
std::string code_format_name(const CodeFormat& format);

/// Where the codes of an output go: codes [cols] (as they are in memory: bytes, or 0 to 15), scales and zeros [groups].
struct CodeRow {
  std::int8_t* codes = nullptr;
  float* scales = nullptr;        // of 4 bits: representable in half precision
  std::uint8_t* zeros = nullptr;  // 0 to 15; of all but int4 always 0
  float* row_scale = nullptr;     // 1 unless E2M1
};

/// What a code stands for before it is scaled.
inline float step_of_code(CodeKind kind, std::int8_t code, std::uint8_t zero) {
  if (kind == CodeKind::e4m3) return e4m3_to_float(static_cast<std::uint8_t>(code));
  return static_cast<float>(kind == CodeKind::e2m1 ? kE2m1Steps[code & 15] : code - zero);
}

/// The code nearest to `value`, ties to even, where a scale is 1; beyond the ends the last one. Of int4 with `zero`.
std::int8_t nearest_code(CodeKind kind, float value, std::uint8_t zero);

/// Rounds an output's weights to the nearest codes, ties to even. `weights` [cols] must be finite.
void quantize_row(const CodeFormat& format, const float* weights, std::int64_t cols, const CodeRow& target);

/// Rounds a row of inputs, `group` of them (0: all) with one scale: codes [cols] in -127 to 127, scales [groups], each
/// max |x| / 127, 0 for a group of zeros. A group with a value that is not finite gets a scale that is not finite, and
/// so results that are not.
void quantize_inputs(const float* x, std::int64_t cols, std::int64_t group, std::int8_t* codes, float* scales);

/// The same to E4M3 with one scale, max |x| / 448: values [cols] are those of the codes, not scaled back.
void round_inputs_to_e4m3(const float* x, std::int64_t cols, float* values, float* scale);

}  // namespace millrace
