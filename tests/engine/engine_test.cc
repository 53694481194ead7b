// The loop with a tiny made-up model: what a sink may do, and when a request ends.

#include "engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/load_model.h"

namespace millrace {
namespace {

class EngineTest : public testing::Test {
 protected:
  void SetUp() override {
    LoadOptions options;
    options.path = MILLRACE_SOURCE_DIR "/tests/fixtures/logits/llama2";
    options.dummy = true;
    options.threads = 1;
    options.kv_memory = std::uint64_t{1} << 20;
    options.limits = {.max_rows = 64, .max_logit_rows = 8};
    auto model = load_model(options);
    ASSERT_TRUE(model.ok()) << model.error().message;
    model_ = std::move(*model);
  }

  static Request request(std::int64_t tokens) {
    Request request;
    request.prompt = {3, 5, 7};
    request.max_new_tokens = tokens;
    return request;
  }

  LoadedModel model_;
};

TEST_F(EngineTest, ASinkMayCancelItsOwnRequestAndAskForItsTimes) {
  Engine engine(*model_.runner, nullptr);
  int finals = 0, tokens = 0;
  const auto sink = [&](const TokenEvent& event) {
    if (event.token >= 0) ++tokens;
    if (event.finish != FinishReason::none) {
      ++finals;
      EXPECT_EQ(event.finish, FinishReason::cancelled);
      EXPECT_GT(engine.times(event.id).ttft, 0.0);
      engine.cancel(event.id);  // once more, from the last event: nothing is left to cancel
    } else if (tokens == 3) {
      engine.cancel(event.id);
    }
  };
  ASSERT_TRUE(engine.submit(request(50), sink).ok());
  while (engine.step()) {
  }
  EXPECT_EQ(tokens, 3);
  EXPECT_EQ(finals, 1);
}

TEST_F(EngineTest, CancellingOthersInTheSameStepIsSafeAndGivesTheirMemoryBack) {
  Engine engine(*model_.runner, nullptr);
  std::vector<SequenceId> ids;
  int finished = 0;
  for (int i = 0; i < 6; ++i) {
    const auto id = engine.submit(request(40), [&](const TokenEvent& event) {
      if (event.finish != FinishReason::none) ++finished;
      if (event.id == ids.front() && event.finish == FinishReason::none) {
        for (const SequenceId other : ids) engine.cancel(other);
      }
    });
    ASSERT_TRUE(id.ok());
    ids.push_back(*id);
  }
  while (engine.step()) {
  }
  EXPECT_EQ(finished, 6);
  // All of the KV memory is free again: a request that needs nearly all of it runs.
  const std::int64_t room = std::min(model_.runner->max_sequence_tokens(), model_.runner->cache().token_capacity());
  FinishReason reason = FinishReason::none;
  ASSERT_TRUE(engine.submit(request(room - 3), [&](const TokenEvent& event) { reason = event.finish; }).ok());
  while (engine.step()) {
  }
  EXPECT_EQ(reason, FinishReason::length);
}

TEST_F(EngineTest, WhatCannotRunIsRefusedWithTheFigures) {
  Engine engine(*model_.runner, nullptr);
  const auto message = [&](Request bad) {
    const auto id = engine.submit(std::move(bad), [](const TokenEvent&) {});
    EXPECT_FALSE(id.ok());
    return id.ok() ? std::string() : id.error().message;
  };
  Request empty = request(1), outside = request(1), longer = request(1), none = request(0);
  empty.prompt.clear();
  outside.prompt.push_back(97);
  longer.prompt.assign(100000, 1);
  EXPECT_NE(message(empty).find("no tokens"), std::string::npos);
  EXPECT_NE(message(outside).find("97"), std::string::npos);
  EXPECT_NE(message(longer).find("100000"), std::string::npos);
  EXPECT_NE(message(none).find("max_new_tokens"), std::string::npos);
}

TEST_F(EngineTest, TogetherOrAloneTheTokensAreTheSame) {
  const auto run = [&](int others) {
    Engine engine(*model_.runner, nullptr);
    std::vector<std::int32_t> tokens;
    Request sampled = request(30);
    sampled.sampling = {.temperature = 1.0f, .seed = 5};
    for (int i = 0; i < others; ++i) {
      Request other = request(10 + i);
      other.prompt.push_back(i);
      EXPECT_TRUE(engine.submit(std::move(other), [](const TokenEvent&) {}).ok());
    }
    EXPECT_TRUE(engine.submit(sampled, [&](const TokenEvent& event) { tokens.push_back(event.token); }).ok());
    while (engine.step()) {
    }
    return tokens;
  };
  const std::vector<std::int32_t> alone = run(0);
  EXPECT_EQ(alone.size(), 30u);
  EXPECT_EQ(run(5), alone);
}

}  // namespace
}  // namespace millrace
