#include "core/memory.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

TEST(ParseSize, BinaryMultiples) {
  EXPECT_EQ(*parse_size("4096"), 4096u);
  EXPECT_EQ(*parse_size("1K"), 1024u);
  EXPECT_EQ(*parse_size("512M"), 512u << 20);
  EXPECT_EQ(*parse_size("1.5GiB"), 3ull << 29);
  EXPECT_EQ(*parse_size("2gb"), 2ull << 30);
  EXPECT_EQ(*parse_size("0"), 0u);
}

TEST(ParseSize, RefusesTheRest) {
  for (const char* text : {"", "M", "-1", "1X", "1e99", "1 G", "nan", "inf", "12MM"}) {
    EXPECT_FALSE(parse_size(text).ok()) << text;
  }
}

TEST(FormatSize, ReadsWell) {
  EXPECT_EQ(format_size(640), "640 bytes");
  EXPECT_EQ(format_size(12u << 20), "12.0 MiB");
  EXPECT_EQ(format_size(3ull << 29), "1.50 GiB");
}

TEST(AvailableMemory, IsAPlausibleFigure) {
  EXPECT_GT(available_memory(), 1u << 20);
  EXPECT_LT(available_memory(), std::uint64_t{1} << 50);
}

}  // namespace
}  // namespace millrace
