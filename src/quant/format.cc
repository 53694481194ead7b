#include "quant/format.h"

#include <array>

#include "core/check.h"

namespace millrace {

namespace {

struct FormatRow {
  QuantFormat format;
  QuantFormatInfo info;
};

constexpr std::array<FormatRow, 22> kFormats{{
    {QuantFormat::f32, {"f32", 1, 4}},
    {QuantFormat::f16, {"f16", 1, 2}},
    {QuantFormat::bf16, {"bf16", 1, 2}},
    {QuantFormat::f8_e4m3, {"f8_e4m3", 1, 1}},
    {QuantFormat::q8_0, {"q8_0", 32, 2 + 32}},
    {QuantFormat::q4_0, {"q4_0", 32, 2 + 16}},
    {QuantFormat::q4_1, {"q4_1", 32, 2 + 2 + 16}},
    {QuantFormat::q5_0, {"q5_0", 32, 2 + 4 + 16}},
    {QuantFormat::q5_1, {"q5_1", 32, 2 + 2 + 4 + 16}},
    {QuantFormat::q2_k, {"q2_k", 256, 16 + 64 + 2 + 2}},
    {QuantFormat::q3_k, {"q3_k", 256, 32 + 64 + 12 + 2}},
    {QuantFormat::q4_k, {"q4_k", 256, 2 + 2 + 12 + 128}},
    {QuantFormat::q5_k, {"q5_k", 256, 2 + 2 + 12 + 32 + 128}},
    {QuantFormat::q6_k, {"q6_k", 256, 128 + 64 + 16 + 2}},
    {QuantFormat::iq4_nl, {"iq4_nl", 32, 2 + 16}},
    {QuantFormat::iq4_xs, {"iq4_xs", 256, 2 + 2 + 4 + 128}},
    {QuantFormat::mxfp4, {"mxfp4", 32, 1 + 16}},
    {QuantFormat::u8, {"u8", 1, 1}},
    {QuantFormat::i8, {"i8", 1, 1}},
    {QuantFormat::i32, {"i32", 1, 4}},
    {QuantFormat::i64, {"i64", 1, 8}},
    {QuantFormat::codes, {"codes", 1, 0}},
}};

constexpr bool rows_are_in_order() {
  for (std::size_t i = 0; i < kFormats.size(); ++i) {
    if (static_cast<std::size_t>(kFormats[i].format) != i) return false;
  }
  return true;
}
static_assert(rows_are_in_order());

}  // namespace

const QuantFormatInfo& format_info(QuantFormat format) {
  const auto index = static_cast<std::size_t>(format);
  MILLRACE_CHECK(index < kFormats.size(), "number format {}", index);
  return kFormats[index].info;
}

std::optional<QuantFormat> format_from_name(std::string_view name) {
  for (const FormatRow& row : kFormats) {
    if (row.info.name == name) return row.format;
  }
  return std::nullopt;
}

}  // namespace millrace
