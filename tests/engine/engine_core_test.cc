// The loop's body with a tiny made-up model: what a sink may do, when a request ends, and that company changes no
// token.

#include "engine/engine_core.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "runtime/load_model.h"

namespace millrace {
namespace {

using Clock = EngineCore::Clock;

/// A made-up model with `kv_memory` bytes for pages and steps of up to `rows` rows.
LoadedModel load_tiny(std::uint64_t kv_memory, std::int64_t rows = 64, const char* name = "llama2") {
  LoadOptions options;
  options.path = std::string(MILLRACE_SOURCE_DIR "/tests/fixtures/logits/") + name;
  options.dummy = true;
  options.threads = 1;
  options.kv_memory = kv_memory;
  options.limits = {.max_rows = rows, .max_logit_rows = std::min<std::int64_t>(rows, 64)};
  auto model = load_model(options);
  EXPECT_TRUE(model.ok()) << model.error().message;
  return std::move(*model);
}

class EngineCoreTest : public testing::Test {
 protected:
  static Request request(std::int64_t tokens) {
    Request request;
    request.prompt = {3, 5, 7};
    request.max_new_tokens = tokens;
    return request;
  }

  RequestId submit(EngineCore& engine, Request request, Sink sink) {
    const Status prepared = engine.prepare(request);
    EXPECT_TRUE(prepared.ok()) << prepared.error().message;
    engine.submit(++last_, std::move(request), std::move(sink), Clock::now());
    return last_;
  }

  static void run(EngineCore& engine) {
    while (engine.step()) {
    }
    EXPECT_TRUE(engine.idle());
  }

  LoadedModel model_ = load_tiny(std::uint64_t{1} << 20);
  RequestId last_ = 0;
};

TEST_F(EngineCoreTest, ASinkMayCancelItsOwnRequest) {
  EngineCore engine(*model_.runner, nullptr);
  int finals = 0, tokens = 0;
  submit(engine, request(50), [&](const TokenEvent& event) {
    if (event.token >= 0) ++tokens;
    if (event.finish != FinishReason::none) {
      ++finals;
      EXPECT_EQ(event.finish, FinishReason::cancelled);
      EXPECT_NE(event.summary, nullptr);
      if (event.summary != nullptr) {
        EXPECT_GT(event.summary->ttft, 0.0);
        EXPECT_EQ(event.summary->generated_tokens, 3);
      }
      engine.cancel(event.request);  // once more, from the last event: nothing is left to cancel
    } else if (tokens == 3) {
      engine.cancel(event.request);
    }
    return Demand::more;
  });
  run(engine);
  EXPECT_EQ(tokens, 3);
  EXPECT_EQ(finals, 1);
}

TEST_F(EngineCoreTest, CancellingOthersInTheSameStepIsSafeAndGivesTheirMemoryBack) {
  EngineCore engine(*model_.runner, nullptr);
  std::vector<RequestId> ids;
  int finished = 0;
  for (int i = 0; i < 6; ++i) {
    ids.push_back(submit(engine, request(40), [&](const TokenEvent& event) {
      if (event.finish != FinishReason::none) ++finished;
      if (event.request == ids.front() && event.finish == FinishReason::none) {
        for (const RequestId other : ids) engine.cancel(other);
      }
      return Demand::more;
    }));
  }
  run(engine);
  EXPECT_EQ(finished, 6);
  EXPECT_EQ(engine.snapshot().kv.used_pages, 0);
  // A request that needs nearly all of the KV memory runs.
  FinishReason reason = FinishReason::none;
  submit(engine, request(model_.runner->max_sequence_tokens() - 3), [&](const TokenEvent& event) {
    reason = event.finish;
    return Demand::more;
  });
  run(engine);
  EXPECT_EQ(reason, FinishReason::length);
}

TEST_F(EngineCoreTest, WhatCannotRunIsRefusedWithTheFigures) {
  const EngineCore engine(*model_.runner, nullptr);
  const auto message = [&](Request bad) {
    const Status status = engine.prepare(bad);
    EXPECT_FALSE(status.ok());
    return status.ok() ? std::string() : status.error().message;
  };
  Request empty = request(1), outside = request(1), longer = request(1), none = request(-1), many = request(1);
  empty.prompt.clear();
  outside.prompt.push_back(97);
  longer.prompt.assign(100000, 1);
  many.choices = 1000;
  EXPECT_NE(message(empty).find("no tokens"), std::string::npos);
  EXPECT_NE(message(outside).find("97"), std::string::npos);
  EXPECT_NE(message(longer).find("100000"), std::string::npos);
  EXPECT_NE(message(none).find("max_new_tokens"), std::string::npos);
  EXPECT_NE(message(many).find("1000"), std::string::npos);
}

TEST_F(EngineCoreTest, APausedSinkStopsItsSequenceOnly) {
  EngineCore engine(*model_.runner, nullptr);
  int paused_tokens = 0, other_tokens = 0;
  const RequestId paused = submit(engine, request(10), [&](const TokenEvent& event) {
    if (event.token >= 0) ++paused_tokens;
    return paused_tokens == 4 ? Demand::pause : Demand::more;
  });
  submit(engine, request(20), [&](const TokenEvent& event) {
    if (event.token >= 0) ++other_tokens;
    return Demand::more;
  });
  while (engine.step()) {
  }
  EXPECT_EQ(paused_tokens, 4);
  EXPECT_EQ(other_tokens, 20);
  EXPECT_FALSE(engine.idle());
  engine.resume(paused, 0);
  run(engine);
  EXPECT_EQ(paused_tokens, 10);
}

TEST_F(EngineCoreTest, ChoicesShareThePromptAndDifferByTheirNumber) {
  EngineCore engine(*model_.runner, nullptr);
  Request four = request(12);
  four.prompt.assign(40, 9);
  four.choices = 4;
  four.sampling = {.temperature = 1.0f, .seed = 5};
  std::map<int, std::vector<std::int32_t>> answers;
  int summaries = 0;
  submit(engine, four, [&](const TokenEvent& event) {
    if (event.token >= 0) answers[event.choice].push_back(event.token);
    if (event.summary != nullptr) ++summaries;
    return Demand::more;
  });
  run(engine);
  EXPECT_EQ(summaries, 1);
  ASSERT_EQ(answers.size(), 4u);
  EXPECT_NE(answers[0], answers[1]);
  // The prompt once, then for the other three the last token of a copied page; 11 tokens more of each.
  EXPECT_EQ(engine.scheduler().counters().computed_tokens, 40 + 3 * 1 + 4 * 11);
}

TEST_F(EngineCoreTest, LogprobsOfPromptAndAnswerAreThoseOfTheLogits) {
  EngineCore engine(*model_.runner, nullptr);
  Request asked = request(3);
  asked.prompt = {3, 5, 7, 11, 13};
  asked.prompt_logprobs = true;
  asked.logprobs = 2;
  std::vector<TokenEvent> events;
  submit(engine, asked, [&](const TokenEvent& event) {
    events.push_back(event);
    return Demand::more;
  });
  run(engine);
  ASSERT_EQ(events.size(), 8u);
  for (int i = 0; i < 5; ++i) {
    EXPECT_TRUE(events[i].of_prompt);
    EXPECT_EQ(events[i].token, asked.prompt[i]);
    EXPECT_EQ(events[i].logprobs.has_value(), i > 0);
  }
  for (int i = 5; i < 8; ++i) {
    ASSERT_TRUE(events[i].logprobs.has_value());
    EXPECT_EQ(events[i].logprobs->top.size(), 2u);
    EXPECT_EQ(events[i].logprobs->top[0].first, events[i].token) << "greedy";
    EXPECT_EQ(events[i].logprobs->top[0].second, events[i].logprobs->logprob);
  }
  // Tokens of the prompt can be asked for without any answer.
  asked.max_new_tokens = 0;
  events.clear();
  submit(engine, asked, [&](const TokenEvent& event) {
    events.push_back(event);
    return Demand::more;
  });
  run(engine);
  ASSERT_EQ(events.size(), 6u);
  EXPECT_EQ(events.back().finish, FinishReason::length);
  EXPECT_EQ(events.back().token, -1);
}

TEST_F(EngineCoreTest, EmbeddingsDoNotDependOnChunksOrCompany) {
  const auto embed = [&](Task task, std::int64_t rows, int others) {
    LoadedModel model = load_tiny(std::uint64_t{1} << 20, rows);
    EngineCore engine(*model.runner, nullptr);
    std::vector<float> embedding;
    for (int i = 0; i < others; ++i) submit(engine, request(20), [](const TokenEvent&) { return Demand::more; });
    Request asked = request(1);
    asked.task = task;
    for (int i = 0; i < 50; ++i) asked.prompt.push_back(i);
    submit(engine, asked, [&](const TokenEvent& event) {
      embedding = event.embedding;
      return Demand::more;
    });
    run(engine);
    return embedding;
  };
  for (const Task task : {Task::embed_mean, Task::embed_last}) {
    const std::vector<float> whole = embed(task, 64, 0);
    ASSERT_EQ(whole.size(), static_cast<std::size_t>(model_.runner->config().hidden));
    EXPECT_EQ(embed(task, 7, 3), whole);
  }
  EXPECT_NE(embed(Task::embed_mean, 64, 0), embed(Task::embed_last, 64, 0));
}

/// Sequences of which 96 positions are kept, in just as much memory as the longest prompt and its answer need.
LoadOptions keeping(std::int64_t max_model_len, std::int32_t pages) {
  LoadOptions options;
  options.path = MILLRACE_SOURCE_DIR "/tests/fixtures/logits/llama2";
  options.dummy = true;
  options.threads = 1;
  options.limits = {.max_rows = 64, .max_logit_rows = 64};
  options.recipe = std::move(*parse_recipe(R"({"millrace_recipe": 1, "attention": {"keep": {"select": "heavy_hitters",
      "tokens": 96, "sink_tokens": 16, "recent_tokens": 32}}})",
                                           "recipe"));
  options.max_model_len = max_model_len;
  options.kv_memory = plan_model(options)->layout.bytes_per_page_row() * static_cast<std::uint64_t>(pages);
  options.swap_memory = 0;
  return options;
}

TEST_F(EngineCoreTest, ThePromptThatFillsTheContextMayBeAnsweredBeyondIt) {
  EXPECT_FALSE(load_model(keeping(1000, 16)).ok());  // the context, and no page for the answer
  auto model = load_model(keeping(1000, 17));
  ASSERT_TRUE(model.ok()) << model.error().message;
  EXPECT_EQ(model->runner->max_prompt_tokens(), 256);
  EXPECT_EQ(model->runner->policy().keep->context, 256);
  EngineCore engine(*model->runner, nullptr);
  Request longest = request(2000);
  longest.prompt.assign(256, 3);
  int tokens = 0;
  submit(engine, longest, [&](const TokenEvent& event) {
    if (event.token >= 0) ++tokens;
    return Demand::more;
  });
  // What is pinned for ever must fit into the context too; else the sequence ends there.
  Request pinned = longest;
  pinned.prompt.resize(240);
  pinned.pinned_tokens = 239;
  ASSERT_TRUE(engine.prepare(pinned).ok());
  EXPECT_EQ(pinned.max_new_tokens, 16);
  run(engine);
  EXPECT_EQ(tokens, 1000 - 256);
  // Within the context nothing is ever moved.
  model = load_model(keeping(256, 17));
  ASSERT_TRUE(model.ok()) << model.error().message;
  EXPECT_EQ(model->runner->policy().keep->context, KvRetention{}.context);
}

}  // namespace
}  // namespace millrace
