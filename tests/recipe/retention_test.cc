// What recipes say of a cache that keeps some pages only.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "recipe/recipe.h"

namespace millrace {
namespace {

std::string message(const std::string& text) {
  const auto recipe = parse_recipe(text, "r.json");
  return recipe.ok() ? "" : recipe.error().message;
}

TEST(Recipe, SaysWhatIsKept) {
  const auto recipe = parse_recipe(
      R"({"millrace_recipe": 1, "attention": {"keep": {"select": "heavy_hitters", "tokens": 1024}}})", "r.json");
  ASSERT_TRUE(recipe.ok()) << recipe.error().message;
  ASSERT_TRUE(recipe->attention.keep);
  EXPECT_FALSE(recipe->lossless());
  EXPECT_FALSE(recipe->attention.reads_all());
  EXPECT_EQ(recipe->attention.keep->choice, KeepChoice::heavy_hitters);
  EXPECT_EQ(recipe->attention.keep->tokens, 1024);
  EXPECT_EQ(recipe->attention.keep->queries, 32);
  EXPECT_EQ(recipe->attention.keep->levels, 0);
  EXPECT_TRUE(recipe->attention.keep->pin_system);
  const auto other = parse_recipe(R"({"millrace_recipe": 1, "attention": {"keep": {"select": "relevance", "tokens": 512,
      "sink_tokens": 0, "recent_tokens": 100, "queries": 8, "levels": 3, "pin_system": false}}})",
                                  "r.json");
  ASSERT_TRUE(other.ok()) << other.error().message;
  EXPECT_EQ(other->attention.keep->choice, KeepChoice::relevance);
  EXPECT_EQ(other->attention.keep->recent_tokens, 100);
  EXPECT_EQ(other->attention.keep->queries, 8);
  EXPECT_EQ(other->attention.keep->levels, 3);
  EXPECT_FALSE(other->attention.keep->pin_system);
  const auto refused = [](const std::string& keep) {
    return message(R"({"millrace_recipe": 1, "attention": {"keep": )" + keep + "}}");
  };
  const std::string where = R"(r.json: "attention"."keep")";
  EXPECT_EQ(refused("[]"), where + " is not an object");
  EXPECT_EQ(refused(R"({"tokens": 512})"), where + R"(: "select" and "tokens" must be there)");
  EXPECT_EQ(
      refused(R"({"select": "quest", "tokens": 512})"),
      where + R"(."select": "quest" is not supported; this version has heavy_hitters, relevance, recent, random)");
  EXPECT_EQ(refused(R"({"select": "recent", "tokens": 111})"),
            where + R"(: "tokens": 111 leaves nothing to choose beside 16 of "sink_tokens" and 64 of )"
                    R"("recent_tokens"; give 112 or more)");
  EXPECT_NE(refused(R"({"select": "recent", "tokens": 512, "queries": 4})").find("\"queries\" is for heavy_hitters"),
            std::string::npos);
  EXPECT_EQ(refused(R"({"select": "relevance", "tokens": 512, "queries": 0})"),
            where + R"(."queries": 0 is not a whole number from 1 on)");
  EXPECT_EQ(refused(R"({"select": "recent", "tokens": 512, "pin_system": 1})"),
            where + R"(."pin_system": 1 is not true or false)");
  EXPECT_NE(refused(R"({"select": "recent", "tokens": 512, "last_token": 128})").find("has \"select\", \"tokens\""),
            std::string::npos);
  EXPECT_NE(refused(R"({"select": "recent", "tokens": 512, "dense_layers": 2})").find("not supported"),
            std::string::npos);
  const auto with_hyper = [](const char* select) {
    return message(R"({"millrace_recipe": 1, "attention": {"prefill": {"select": "hyper"}, "keep": {"select": ")" +
                   std::string(select) + R"(", "tokens": 512}}})");
  };
  EXPECT_NE(with_hyper("relevance").find("attention that hyper only estimates"), std::string::npos);
  EXPECT_EQ(with_hyper("recent"), "");
}

TEST(Recipe, SaysWhatTheLastLevelKeeps) {
  const auto keep = [](const std::string& keys) {
    return R"({"millrace_recipe": 1, "attention": {"keep": {"select": "recent", "tokens": 512, )" + keys + "}}}";
  };
  const auto recipe = parse_recipe(keep(R"("last_tokens": 128, "levels": 4)"), "r.json");
  ASSERT_TRUE(recipe.ok()) << recipe.error().message;
  const KvRetention& retention = *recipe->attention.keep;
  EXPECT_EQ(retention.last_tokens, 128);
  std::vector<std::int64_t> kept;
  for (std::int64_t level = 0; level < 4; ++level) kept.push_back(retention.of_level(level, 4).tokens);
  EXPECT_EQ(kept, (std::vector<std::int64_t>{512, 384, 256, 128}));
  EXPECT_EQ(retention.of_level(1, 3).tokens, 320);
  EXPECT_EQ(retention.of_level(0, 1).tokens, 512) << "a model with one layer of its kind has the first level";
  EXPECT_EQ(parse_recipe(keep(R"("levels": 4)"), "r.json")->attention.keep->of_level(3, 4).tokens, 512);
  EXPECT_EQ(message(keep(R"("last_tokens": 512)")), "");
  const std::string where = R"(r.json: "attention"."keep")";
  EXPECT_EQ(message(keep(R"("last_tokens": 513)")),
            where + R"(: "last_tokens": 513 is more than "tokens": 512; what levels keep falls from the first to the )"
                    "last");
  EXPECT_EQ(message(keep(R"("last_tokens": 111)")),
            where + R"(: "last_tokens": 111 leaves nothing to choose beside 16 of "sink_tokens" and 64 of )"
                    R"("recent_tokens"; give 112 or more)");
  EXPECT_EQ(message(keep(R"("last_tokens": 0)")), where + R"(."last_tokens": 0 is not a whole number from 1 on)");
  EXPECT_EQ(message(keep(R"("last_tokens": 128, "levels": 1)")),
            where + R"(: "last_tokens" is for several levels, and "levels" is 1)");
}

}  // namespace
}  // namespace millrace
