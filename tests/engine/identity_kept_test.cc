// Batch invariance where sequences keep some pages only, and where answers go on elsewhere.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "identity.h"

namespace millrace {
namespace {

/// Sequences that keep some pages: with a policy that keeps everything, the answers are those of a dense model.
TEST_P(Identity, OfSequencesThatKeepSomePagesToo) {
  const auto recipe = [](const char* select, int tokens, int levels, int last = 0) {
    return fmt::format(R"({{"millrace_recipe": 1, "attention": {{"keep": {{"select": "{}", "tokens": {},
        {} "sink_tokens": 16, "recent_tokens": 16, "levels": {}}}}}}})",
                       select, tokens, last > 0 ? fmt::format(R"("last_tokens": {},)", last) : "", levels);
  };
  const LoadedModel dense = load(96, 4000);
  const std::vector<std::int64_t> windows = dense.runner->cache().windows();
  const bool keeps = std::ranges::find(windows, 0) != windows.end();
  const std::vector<Request> all = requests(dense.runner->config().vocab);
  const Answers of_dense = each_alone(dense, all, 3);
  for (const char* select : {"heavy_hitters", "relevance", "recent", "random"}) {
    SCOPED_TRACE(select);
    expect_the_same_in_all_settings(recipe(select, 64, 1));
    const LoadedModel some = load(96, 4000, DType::f32, recipe(select, 64, 1));
    const Answers of_some = each_alone(some, all, 3);
    EXPECT_EQ(of_some != of_dense, keeps);  // else the test says nothing
    // Rows of prompts see everything: they say the first token.
    for (const auto& [key, tokens] : of_dense) EXPECT_EQ(of_some.at(key).front(), tokens.front()) << key.first;
    const LoadedModel everything = load(96, 4000, DType::f32, recipe(select, 256, 1));
    EXPECT_EQ(each_alone(everything, all, 3), of_dense);
  }
  expect_the_same_in_all_settings(recipe("heavy_hitters", 64, 0));
  expect_the_same_in_all_settings(recipe("relevance", 80, 2));
  // The last level keeps less than the first.
  expect_the_same_in_all_settings(recipe("heavy_hitters", 112, 0, 64));
  const LoadedModel falling = load(96, 4000, DType::f32, recipe("heavy_hitters", 112, 0, 64));
  const LoadedModel equal = load(96, 4000, DType::f32, recipe("heavy_hitters", 112, 0));
  const bool of_levels = std::ranges::count(equal.runner->cache().windows(), 0) > 1;
  EXPECT_EQ(each_alone(falling, all, 3) != each_alone(equal, all, 3), of_levels);
  const LoadedModel everything = load(96, 4000, DType::f32, recipe("heavy_hitters", 512, 0, 256));
  EXPECT_EQ(each_alone(everything, all, 3), of_dense);
}

/// Whoever reads too slowly is preempted by who waits: swapped out, or computed again where there is no room for that.
TEST_P(Identity, OfSequencesThatKeepSomePagesAndArePreempted) {
  expect_the_same_preempted(R"({"millrace_recipe": 1, "attention": {"keep": {"select": "heavy_hitters",
      "tokens": 64, "sink_tokens": 16, "recent_tokens": 16, "levels": 0}}})");
  // Levels of unequal budgets, whose bounds of keys are swapped with them.
  expect_the_same_preempted(R"({"millrace_recipe": 1, "attention": {"keep": {"select": "heavy_hitters", "tokens": 96,
      "last_tokens": 64, "sink_tokens": 16, "recent_tokens": 16, "levels": 0}, "decode": {"select": "quest",
      "tokens": 64, "sink_tokens": 16, "recent_tokens": 16, "dense_layers": 1}}})");
}

/// What another engine has begun is completed as that one would have: its tokens are computed as the answer's, not as
/// a longer prompt's.
TEST_P(Identity, OfAnswersThatGoOnElsewhereToo) {
  for (const char* recipe :
       {R"({"millrace_recipe": 1})",
        R"({"millrace_recipe": 1, "weights": {"default": "int4.g32"}, "kv": {"format": "fp8_e4m3"},
            "attention": {"decode": {"select": "quest", "tokens": 64, "sink_tokens": 16, "recent_tokens": 16,
            "dense_layers": 0}}})",
        R"({"millrace_recipe": 1, "attention": {"keep": {"select": "heavy_hitters", "tokens": 64, "sink_tokens": 16,
            "recent_tokens": 16, "levels": 0}}})"}) {
    SCOPED_TRACE(recipe);
    const LoadedModel model = load(96, 4000, DType::f32, recipe);
    const std::vector<Request> all = requests(model.runner->config().vocab);
    constexpr std::size_t kEvery = 3;
    const Answers whole = each_alone(model, all, kEvery);
    EngineCore engine(*model.runner, nullptr);
    std::mt19937 random(11);
    Answers answers;
    std::map<std::pair<int, int>, int> ends;
    for (std::size_t i = 0; i < all.size(); i += kEvery) {
      Request request = all[i];
      for (int c = 0; c < request.choices; ++c) {
        const std::pair<int, int> key{static_cast<int>(i), c};
        const std::vector<std::int32_t>& tokens = whole.at(key);
        BegunAnswer begun;
        begun.tokens.assign(tokens.begin(),
                            tokens.begin() + static_cast<std::ptrdiff_t>(random() % (tokens.size() + 1)));
        begun.ended = c > 0 && random() % 3 == 0;
        if (begun.ended) begun.tokens = tokens;
        answers[key] = begun.tokens;
        ends[key] = begun.ended ? 1 : 0;
        request.begun.push_back(std::move(begun));
      }
      const Status prepared = engine.prepare(request);
      ASSERT_TRUE(prepared.ok()) << prepared.error().message;
      engine.submit(
          i, std::move(request),
          [&, i](const TokenEvent& event) {
            const std::pair<int, int> key{static_cast<int>(i), event.choice};
            if (event.token >= 0) answers[key].push_back(event.token);
            if (event.finish != FinishReason::none) ++ends[key];
            return Demand::more;
          },
          EngineCore::Clock::now());
    }
    while (engine.step()) {
    }
    engine.scheduler().check();
    EXPECT_TRUE(engine.idle());
    EXPECT_EQ(answers, whole);
    for (const auto& [key, count] : ends) EXPECT_EQ(count, 1) << key.first << ", choice " << key.second;
  }
}

/// Answers that are longer than the model's context: pages that are too far away count as if they stood nearer.
TEST_P(Identity, OfAnswersBeyondTheContext) {
  for (const char* select : {"recent", "heavy_hitters"}) {
    SCOPED_TRACE(select);
    const std::string recipe = fmt::format(R"({{"millrace_recipe": 1, "attention": {{"keep": {{"select": "{}",
        "tokens": 96, "sink_tokens": 16, "recent_tokens": 32, "levels": 0}}}}}})",
                                           select);
    constexpr std::int64_t kLength = 1100;  // the context is 256
    const LoadedModel wide = load(96, 4000, DType::f32, recipe, 0, kLength);
    ASSERT_EQ(wide.runner->config().max_position, 256);
    const std::vector<std::int64_t> windows = wide.runner->cache().windows();
    const std::int64_t length = std::ranges::find(windows, 0) != windows.end() ? kLength : 256;
    ASSERT_EQ(wide.runner->max_sequence_tokens(), length);
    std::vector<Request> all = requests(wide.runner->config().vocab);
    all.resize(8);
    for (Request& request : all) {
      request.choices = 1;
      request.max_new_tokens = 2000;  // cut to what fits
    }
    const Answers alone = each_alone(wide, all, 1);
    for (const auto& [key, tokens] : alone) {
      const std::size_t prompt = all[static_cast<std::size_t>(key.first)].prompt.size();
      EXPECT_EQ(tokens.size() + prompt, static_cast<std::size_t>(length));
    }
    for (const std::int64_t rows : {96, 19}) {
      const LoadedModel model = load(rows, 60, DType::f32, recipe, 0, kLength);
      EngineCore engine(*model.runner, nullptr);
      std::vector<int> order(all.size());
      std::iota(order.rbegin(), order.rend(), 0);
      EXPECT_EQ(run(engine, all, order, 3), alone);
    }
    Request too_long = all[0];
    too_long.prompt.assign(257, 1);
    EngineCore engine(*wide.runner, nullptr);
    EXPECT_FALSE(engine.prepare(too_long).ok());
  }
}

}  // namespace
}  // namespace millrace
