#include "quant/format.h"

#include <gtest/gtest.h>

#include <string>

namespace millrace {
namespace {

struct Expected {
  QuantFormat format;
  const char* name;
  std::size_t elements, bytes;
};

// Block sizes as the GGUF format states them.
constexpr Expected kExpected[] = {
    {QuantFormat::f32, "f32", 1, 4},         {QuantFormat::f16, "f16", 1, 2},
    {QuantFormat::bf16, "bf16", 1, 2},       {QuantFormat::f8_e4m3, "f8_e4m3", 1, 1},
    {QuantFormat::q8_0, "q8_0", 32, 34},     {QuantFormat::q4_0, "q4_0", 32, 18},
    {QuantFormat::q4_1, "q4_1", 32, 20},     {QuantFormat::q5_0, "q5_0", 32, 22},
    {QuantFormat::q5_1, "q5_1", 32, 24},     {QuantFormat::q2_k, "q2_k", 256, 84},
    {QuantFormat::q3_k, "q3_k", 256, 110},   {QuantFormat::q4_k, "q4_k", 256, 144},
    {QuantFormat::q5_k, "q5_k", 256, 176},   {QuantFormat::q6_k, "q6_k", 256, 210},
    {QuantFormat::iq4_nl, "iq4_nl", 32, 18}, {QuantFormat::iq4_xs, "iq4_xs", 256, 136},
    {QuantFormat::mxfp4, "mxfp4", 32, 17},   {QuantFormat::u8, "u8", 1, 1},
    {QuantFormat::i8, "i8", 1, 1},           {QuantFormat::i32, "i32", 1, 4},
    {QuantFormat::i64, "i64", 1, 8},         {QuantFormat::codes, "codes", 1, 0},
};

TEST(QuantFormat, BlocksAndNames) {
  int index = 0;
  for (const Expected& expected : kExpected) {
    SCOPED_TRACE(expected.name);
    EXPECT_EQ(static_cast<int>(expected.format), index++);
    const QuantFormatInfo& info = format_info(expected.format);
    EXPECT_EQ(info.name, expected.name);
    EXPECT_EQ(info.block_elements, expected.elements);
    EXPECT_EQ(info.block_bytes, expected.bytes);
    EXPECT_EQ(format_from_name(info.name), expected.format);
    EXPECT_EQ(format_bytes(expected.format, 7 * expected.elements), 7 * expected.bytes);
    EXPECT_EQ(is_plain(expected.format), index <= 4);
    EXPECT_EQ(is_raw(expected.format), index >= 18 && index <= 21);
  }
  EXPECT_DEATH(static_cast<void>(format_info(static_cast<QuantFormat>(index))), "number format 22");
}

TEST(QuantFormat, UnknownNames) {
  for (const char* name : {"", "Q4_K", "q4_k ", "q4", "iq2_xxs"}) EXPECT_FALSE(format_from_name(name)) << name;
}

}  // namespace
}  // namespace millrace
