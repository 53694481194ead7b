#include "core/json_extent.h"

#include <gtest/gtest.h>

#include <string>

namespace millrace {
namespace {

TEST(JsonExtent, CountsWhatAParserWouldBuild) {
  const JsonExtent extent = json_extent(R"({"a": [1, 2, {"b": "}{\\\"[,:"}], "c": {}, "d": 0})", 10);
  EXPECT_EQ(extent.depth, 3u);
  EXPECT_EQ(extent.values, 9u);  // four containers, an end of text, and one for each comma
  EXPECT_EQ(extent.key_pairs, 3u * 3u + 1u);
}

TEST(JsonExtent, CountsTheKeysOfObjectsThatTheEndCutsOff) {
  EXPECT_EQ(json_extent(R"({"a": 1, "b": {"c")", 10).key_pairs, 4u);
}

TEST(JsonExtent, StopsWhereItIsTooDeep) {
  const std::string deep(1'000'000, '[');
  EXPECT_EQ(json_extent(deep, 100).depth, 101u);
  EXPECT_EQ(json_extent(std::string(100, '['), 100).depth, 100u);
}

TEST(JsonExtent, HarmlessForWhatIsNoJson) {
  EXPECT_EQ(json_extent("", 10).depth, 0u);
  EXPECT_EQ(json_extent("]]]]", 10).depth, 0u);
  EXPECT_EQ(json_extent("\"[[[[", 10).depth, 0u);
  EXPECT_EQ(json_extent("\"\\", 10).depth, 0u);
}

}  // namespace
}  // namespace millrace
