// The budgets that layers get by what they need.
#include "recipe/page_budgets.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "recipe/recipe.h"

namespace millrace {
namespace {

TEST(PageBudgets, AreInProportionToNeeds) {
  EXPECT_EQ(page_budgets(std::vector{1.0, 2.0, 3.0}, 20, 4), (std::vector<std::int64_t>{10, 20, 30}));
  EXPECT_EQ(page_budgets(std::vector{5.0, 5.0, 5.0}, 7, 4), (std::vector<std::int64_t>{7, 7, 7}));
  EXPECT_EQ(page_budgets(std::vector{3.0}, 9, 4), (std::vector<std::int64_t>{9}));
  EXPECT_EQ(page_budgets({}, 9, 4), std::vector<std::int64_t>{});
  // Who needs next to nothing has the least, and takes that from the others.
  EXPECT_EQ(page_budgets(std::vector{0.01, 1.0, 1.0}, 8, 4), (std::vector<std::int64_t>{4, 10, 10}));
  EXPECT_EQ(page_budgets(std::vector{1.0, 9.0}, 4, 4), (std::vector<std::int64_t>{4, 4}));
}

TEST(PageBudgets, KeepTheMeanTheLeastAndTheOrder) {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    std::vector<double> needs(1 + random() % 12);
    for (double& need : needs) need = 1.0 + static_cast<double>(random() % 1000) / 50.0;
    const std::int64_t least = 1 + static_cast<std::int64_t>(random() % 8);
    std::vector<std::int64_t> before(needs.size(), least);
    for (std::int64_t mean = least; mean < least + 40; ++mean) {
      const std::vector<std::int64_t> pages = page_budgets(needs, mean, least);
      EXPECT_EQ(std::accumulate(pages.begin(), pages.end(), std::int64_t{0}), mean * std::ssize(needs));
      for (std::size_t l = 0; l < needs.size(); ++l) {
        EXPECT_GE(pages[l], before[l]) << "a larger mean takes no page from a layer";
        for (std::size_t other = 0; other < needs.size(); ++other) {
          if (needs[l] > needs[other]) {
            EXPECT_GE(pages[l], pages[other]);
          }
          // In proportion, but for a page.
          if (pages[other] > least) {
            EXPECT_GE(needs[other] / static_cast<double>(pages[other]),
                      needs[l] / static_cast<double>(pages[l] + 1) * (1 - 1e-12));
          }
        }
      }
      before = pages;
    }
  }
  // Far beyond any context there is no more to count than rounding leaves.
  const std::int64_t most = std::int64_t{1} << 36;
  const std::vector<std::int64_t> pages = page_budgets(std::vector{1.0, 1.7, 30.3, 2.2}, most, 7);
  EXPECT_EQ(std::accumulate(pages.begin(), pages.end(), std::int64_t{0}), 4 * most);
  EXPECT_TRUE(pages[0] < pages[1] && pages[1] < pages[3] && pages[3] < pages[2]);
}

TEST(PageBudgets, ARecipeNamesTheProfile) {
  const auto parse = [](const std::string& decode) {
    return parse_recipe(R"({"millrace_recipe": 1, "attention": {"decode": )" + decode + "}}", "r.json");
  };
  for (const char* select : {"quest", "recent", "random"}) {
    const auto recipe = parse(fmt::format(R"({{"select": "{}", "tokens": 256, "profile": "p.json"}})", select));
    ASSERT_TRUE(recipe.ok()) << recipe.error().message;
    EXPECT_EQ(recipe->attention.budgets.profile_file, "p.json");
    EXPECT_EQ(recipe->attention.decode->tokens, 256);
    EXPECT_TRUE(recipe->attention.budgets.tokens.empty());
  }
  EXPECT_TRUE(parse(R"({"select": "quest", "tokens": 256})")->attention.budgets.profile_file.empty());
  const std::string where = R"(r.json: "attention"."decode")";
  EXPECT_EQ(parse(R"({"select": "quest", "tokens": 256, "profile": 7})").error().message,
            where + R"(."profile" is not the name of a file that `millrace calibrate` has written)");
  EXPECT_EQ(parse(R"({"select": "quest", "tokens": 256, "profile": ""})").error().message,
            where + R"(."profile" is not the name of a file that `millrace calibrate` has written)");
  EXPECT_EQ(parse(R"({"select": "quest", "profile": "p.json"})").error().message,
            where + R"(: "select" must be there, and "mass" or "tokens")");
  EXPECT_EQ(parse(R"({"select": "quest", "tokens": 256, "mass": 0.9, "profile": "p.json"})").error().message,
            where + R"(: "profile" shares "tokens" out to the layers, "mass" leaves it to each row: give one of them)");
}

TEST(PageBudgets, TheLeastHasRoomForOneThatIsChosen) {
  EXPECT_EQ(least_tokens({.sink_tokens = 16, .recent_tokens = 64}), 112);
  EXPECT_EQ(least_tokens({.sink_tokens = 0, .recent_tokens = 1}), 32);
  EXPECT_EQ(least_tokens({.sink_tokens = 17, .recent_tokens = 66}), 32 + 16 + 80 + 16);
}

}  // namespace
}  // namespace millrace
