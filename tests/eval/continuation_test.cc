// Scores of continuations against the same ones computed plainly, one sequence at a time.
#include "eval/continuation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/philox.h"
#include "eval/task_fixture.h"
#include "runtime/run_tokens.h"

namespace millrace {
namespace {

/// Of 3 to 62 tokens and `more`, with contexts of all lengths, every other one asking further.
std::vector<Continuation> random_continuations(std::int64_t vocab, std::uint64_t more = 0) {
  std::vector<Continuation> all;
  for (std::uint32_t c = 0; c < 40; ++c) {
    Continuation continuation{.tokens = {}, .asks_further = c % 2 == 1};
    for (std::uint64_t i = 0; i < 3 + (c * 17) % 60 + more; ++i) {
      continuation.tokens.push_back(static_cast<std::int32_t>(philox_uniform(3, c, i) * static_cast<float>(vocab)));
    }
    continuation.context = 1 + (c * 7) % (continuation.tokens.size() - 1);
    all.push_back(std::move(continuation));
  }
  return all;
}

std::vector<ContinuationScore> score(ModelRunner& runner, const std::vector<Continuation>& all) {
  std::vector<const Continuation*> asked;
  for (const Continuation& each : all) asked.push_back(&each);
  std::vector<ContinuationScore> scores;
  const Status status = score_continuations(runner, asked, [&](std::size_t index, const ContinuationScore& score) {
    EXPECT_EQ(index, scores.size());
    scores.push_back(score);
    return Ok{};
  });
  EXPECT_TRUE(status.ok()) << status.error().message;
  return scores;
}

ContinuationScore plainly(ModelRunner& runner, const Continuation& asked) {
  ContinuationScore score;
  const Status ran =
      run_tokens(runner, asked.tokens, RowsAre::prompt, [&](std::int64_t position, std::span<const float> logits) {
        const auto next = static_cast<std::size_t>(position) + 1;
        const auto top = std::ranges::max_element(logits) - logits.begin();
        if (next < asked.context) return;
        if (next == asked.tokens.size()) {
          if (asked.asks_further) score.next = static_cast<std::int32_t>(top);
          return;
        }
        double sum = 0.0;
        for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
        score.log_likelihood += logits[static_cast<std::size_t>(asked.tokens[next])] - std::log(sum);
        score.greedy = score.greedy && top == asked.tokens[next];
      });
  EXPECT_TRUE(ran.ok());
  return score;
}

TEST(Continuation, ScoresAreTheirDefinitionsWhateverSharesAStep) {
  TestModel wide("stories260K"), narrow("stories260K", "", 7);
  const std::vector<Continuation> all = random_continuations(wide.loaded.runner->config().vocab);
  const auto together = score(*wide.loaded.runner, all), apart = score(*narrow.loaded.runner, all);
  ASSERT_EQ(together.size(), all.size());
  ASSERT_EQ(apart.size(), all.size());
  for (std::size_t c = 0; c < all.size(); ++c) {
    const ContinuationScore plain = plainly(*wide.loaded.runner, all[c]);
    EXPECT_NEAR(together[c].log_likelihood, plain.log_likelihood, 1e-9 * std::fabs(plain.log_likelihood)) << c;
    EXPECT_EQ(together[c].log_likelihood, apart[c].log_likelihood) << c;  // to the bit
    EXPECT_EQ(together[c].greedy, plain.greedy) << c;
    EXPECT_EQ(together[c].next, plain.next) << c;
    EXPECT_EQ(apart[c].next, plain.next) << c;
  }
}

/// A continuation that does not ask further ends a position before its tokens do.
TEST(Continuation, PromptsThatSelectBlocksAreScoredInWholeBlocks) {
  const std::string recipe = R"({"millrace_recipe": 1, "attention": {"prefill": {"select": "xattention", "mass": 0.05,
      "sink_tokens": 0, "recent_tokens": 1, "dense_layers": 0}}})";
  TestModel dense("stories260K"), wide("stories260K", recipe, 512), narrow("stories260K", recipe, 7);
  const std::vector<Continuation> all = random_continuations(dense.loaded.runner->config().vocab, 230);
  const auto together = score(*wide.loaded.runner, all), apart = score(*narrow.loaded.runner, all);
  const auto of_dense = score(*dense.loaded.runner, all);
  ASSERT_EQ(together.size(), all.size());
  int others = 0;
  for (std::size_t c = 0; c < all.size(); ++c) {
    EXPECT_EQ(together[c].log_likelihood, apart[c].log_likelihood) << c;  // to the bit
    EXPECT_EQ(together[c].next, apart[c].next) << c;
    others += together[c].log_likelihood != of_dense[c].log_likelihood ? 1 : 0;
  }
  EXPECT_GT(others, 30);  // else nothing was selected
}

/// Blocks of a prompt end where the answer begins, which may be anywhere, and what is kept is decided there.
TEST(Continuation, ScoresDoNotDependOnStepsWhereSomeIsKept) {
  const std::string prefill = R"("prefill": {"select": "xattention", "mass": 0.05, "sink_tokens": 0, "recent_tokens": 1,
      "dense_layers": 0}, )";
  const std::string keep =
      R"("keep": {"select": "heavy_hitters", "tokens": 64, "sink_tokens": 16, "recent_tokens": 16})";
  for (const std::string& policy : {keep, prefill + keep}) {
    SCOPED_TRACE(policy);
    const std::string recipe = R"({"millrace_recipe": 1, "attention": {)" + policy + "}}";
    TestModel dense("stories260K"), wide("stories260K", recipe, 512), narrow("stories260K", recipe, 7);
    const std::vector<Continuation> all = random_continuations(dense.loaded.runner->config().vocab, 230);
    const auto together = score(*wide.loaded.runner, all), apart = score(*narrow.loaded.runner, all);
    const auto of_dense = score(*dense.loaded.runner, all);
    int others = 0;
    for (std::size_t c = 0; c < all.size(); ++c) {
      EXPECT_EQ(together[c].log_likelihood, apart[c].log_likelihood) << c;  // to the bit
      EXPECT_EQ(together[c].next, apart[c].next) << c;
      others += together[c].log_likelihood != of_dense[c].log_likelihood ? 1 : 0;
    }
    EXPECT_GT(others, 30);  // else nothing was dropped
  }
}

TEST(Continuation, WhatTheModelWouldSayIsGreedy) {
  TestModel model("stories260K");
  Continuation said{.tokens = {1, 403, 407}, .context = 3, .asks_further = true};
  for (int i = 0; i < 6; ++i) {  // token by token
    said.context = said.tokens.size() - 1;
    said.tokens.push_back(score(*model.loaded.runner, {said}).front().next);
  }
  said.context = 3;
  EXPECT_TRUE(score(*model.loaded.runner, {said}).front().greedy);
  said.tokens[5] = said.tokens[5] == 10 ? 11 : 10;
  EXPECT_FALSE(score(*model.loaded.runner, {said}).front().greedy);
}

TEST(Continuation, TooLongIsAnErrorWithFigures) {
  TestModel model("stories260K");
  const auto longest = static_cast<std::size_t>(model.loaded.runner->max_sequence_tokens());
  const Continuation asked{.tokens = std::vector<std::int32_t>(longest + 1, 5), .context = 4};
  const std::vector<const Continuation*> all{&asked};
  const Status status =
      score_continuations(*model.loaded.runner, all, [](std::size_t, const ContinuationScore&) { return Ok{}; });
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.error().message.find(std::to_string(longest + 1)), std::string::npos) << status.error().message;
}

}  // namespace
}  // namespace millrace
