#include "convert/gguf_plan.h"

#include <algorithm>
#include <array>

#include "core/check.h"

namespace millrace {

namespace {

/// general.file_type, which says what most of the matrices are.
std::uint32_t file_type(QuantFormat format) {
  switch (format) {
    case QuantFormat::f32:
      return 0;
    case QuantFormat::f16:
      return 1;
    case QuantFormat::q4_0:
      return 2;
    case QuantFormat::q4_1:
      return 3;
    case QuantFormat::q8_0:
      return 7;
    case QuantFormat::q5_0:
      return 8;
    case QuantFormat::q5_1:
      return 9;
    case QuantFormat::q4_k:
      return 14;
    case QuantFormat::q5_k:
      return 16;
    case QuantFormat::q6_k:
      return 18;
    case QuantFormat::bf16:
      return 32;
    default:
      break;
  }
  MILLRACE_CHECK(false, "no file is of type {}", format_info(format).name);
  return 0;
}

}  // namespace

std::int64_t GgufStep::rows() const {
  std::int64_t rows = 1;
  for (std::size_t i = 0; i + 1 < output.shape.size(); ++i) rows *= output.shape[i];
  return rows;
}

bool is_quantised(std::string_view name, std::size_t dimensions) {
  constexpr std::array<std::string_view, 4> kKept = {"norm", "ffn_gate_inp", "rope_", "attn_sinks"};
  return dimensions >= 2 && name.ends_with(".weight") &&
         std::ranges::none_of(kKept, [&](std::string_view part) { return name.find(part) != std::string_view::npos; });
}

QuantFormat format_for(QuantFormat wanted, const std::string& name, const std::vector<std::int64_t>& shape,
                       std::vector<std::string>& notes) {
  if (!is_quantised(name, shape.size())) return QuantFormat::f32;
  const QuantFormatInfo& info = format_info(wanted);
  if (shape.back() % static_cast<std::int64_t>(info.block_elements) == 0) return wanted;
  notes.push_back(fmt::format("{} is kept in f16: its rows of {} are no whole number of blocks of {}, as {} has them",
                              name, shape.back(), info.block_elements, info.name));
  return QuantFormat::f16;
}

void set_file_type(GgufMetadataWriter& metadata, QuantFormat format) {
  metadata.set_uint32("general.file_type", file_type(format));
  metadata.set_uint32("general.quantization_version", 2);  // of the layout of blocks
}

}  // namespace millrace
