// The engine with its thread: requests from many threads, back-pressure, drain, an end without leftovers.

#include "engine/engine.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <random>
#include <set>
#include <thread>

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

TEST_F(EngineTest, ManyThreadsSubmitAndCancelAndEveryRequestEndsOnce) {
  std::atomic<int> submitted{0}, ended{0}, summaries{0};
  {
    Engine engine(*model_.runner, nullptr, {});
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937 random(static_cast<unsigned>(t));
        for (int i = 0; i < 25; ++i) {
          const auto id =
              engine.submit(request(1 + static_cast<std::int64_t>(random() % 30)), [&](const TokenEvent& e) {
                if (e.finish != FinishReason::none) ++ended;
                if (e.summary != nullptr) ++summaries;
                return Demand::more;
              });
          if (!id.ok()) continue;
          ++submitted;
          if (random() % 3 == 0) engine.cancel(*id);
          if (random() % 5 == 0) std::this_thread::yield();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(engine.wait_idle(60.0));
    EXPECT_EQ(engine.snapshot().kv.used_pages, 0);
  }
  EXPECT_EQ(submitted, 200);
  EXPECT_EQ(ended, 200);
  EXPECT_EQ(summaries, 200);
}

TEST_F(EngineTest, AFullQueueIsBusyAndADrainingEngineUnavailable) {
  Engine engine(*model_.runner, nullptr, {.max_waiting = 4});
  // The first sink holds the engine's thread until the others are queued.
  std::promise<void> release;
  std::shared_future<void> released = release.get_future().share();
  std::promise<void> running;
  std::atomic<bool> first{true};
  const auto sink = [&](const TokenEvent&) {
    if (first.exchange(false)) {
      running.set_value();
      released.wait();
    }
    return Demand::more;
  };
  ASSERT_TRUE(engine.submit(request(5), sink).ok());
  running.get_future().wait();
  // Until its first step is over the first one counts as waiting, too.
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(engine.submit(request(5), sink).ok());
  const auto refused = engine.submit(request(5), sink);
  EXPECT_TRUE(!refused.ok() && refused.error().kind == ErrorKind::busy);
  EXPECT_EQ(engine.snapshot().waiting, 4);
  engine.drain();
  const auto late = engine.submit(request(5), sink);
  EXPECT_TRUE(!late.ok() && late.error().kind == ErrorKind::unavailable);
  release.set_value();
  EXPECT_TRUE(engine.wait_idle(60.0));
}

TEST_F(EngineTest, APausedSinkResumesFromAnotherThread) {
  Engine engine(*model_.runner, nullptr, {});
  std::atomic<int> tokens{0};
  std::promise<void> ended;
  const auto id = engine.submit(request(10), [&](const TokenEvent& event) {
    if (event.token >= 0) ++tokens;
    if (event.summary != nullptr) ended.set_value();
    return tokens < 10 ? Demand::pause : Demand::more;
  });
  ASSERT_TRUE(id.ok());
  std::future<void> end = ended.get_future();
  while (end.wait_for(std::chrono::milliseconds(1)) != std::future_status::ready) engine.resume(*id, 0);
  EXPECT_EQ(tokens, 10);
}

TEST_F(EngineTest, WhatFollowsTheSinksOfAStepIsCalledOnceForAllOfThem) {
  struct Heard {
    int tokens = 0, ends = 0;  // since the last call
  } heard;
  std::vector<Heard> calls;  // of the engine's thread, until it has been joined
  {
    Engine engine(*model_.runner, nullptr, {});
    const auto sink = [&](const TokenEvent& event) {
      if (heard.tokens + heard.ends == 0) {
        engine.after_sinks([&] { calls.push_back(std::exchange(heard, {})); });
      }
      ++(event.finish == FinishReason::none ? heard.tokens : heard.ends);
      return Demand::more;
    };
    Request four = request(20);
    four.choices = 4;
    ASSERT_TRUE(engine.submit(std::move(four), sink).ok());
    EXPECT_TRUE(engine.wait_idle(60.0));
    ASSERT_TRUE(engine.submit(request(1000), sink).ok());
  }
  int steps_of_four = 0, ends = 0;
  for (const Heard& each : calls) {
    EXPECT_GT(each.tokens + each.ends, 0);
    EXPECT_LE(each.tokens + each.ends, 4);
    steps_of_four += each.tokens + each.ends == 4 ? 1 : 0;
    ends += each.ends;
  }
  EXPECT_GE(steps_of_four, 15);
  EXPECT_EQ(ends, 5) << "the last one too, which the engine's end has cancelled";
  EXPECT_EQ(heard.tokens + heard.ends, 0);
}

TEST_F(EngineTest, WhoeverIsLeftAtTheEndIsCancelled) {
  std::atomic<int> cancelled{0};
  {
    Engine engine(*model_.runner, nullptr, {});
    for (int i = 0; i < 20; ++i) {
      ASSERT_TRUE(engine
                      .submit(request(60),
                              [&](const TokenEvent& event) {
                                if (event.finish == FinishReason::cancelled) ++cancelled;
                                return Demand::pause;
                              })
                      .ok());
    }
  }
  EXPECT_EQ(cancelled, 20);
}

TEST_F(EngineTest, ReportsAddUp) {
  std::int64_t generated = 0, prompt = 0, intervals = 0, steps = 0, requests = 0;
  std::set<FinishReason> reasons;
  {
    Engine engine(*model_.runner, nullptr,
                  {.on_step =
                       [&](const StepReport& report) {
                         ++steps;
                         generated += report.generated_tokens;
                         prompt += report.prompt_tokens;
                         intervals += static_cast<std::int64_t>(report.inter_token.size());
                         EXPECT_LE(report.kv.unused_slots, report.kv.allocated_slots);
                       },
                   .on_request =
                       [&](const RequestReport& report) {
                         ++requests;
                         reasons.insert(report.finish);
                         EXPECT_EQ(report.summary.generated_tokens, 10);
                       }});
    for (int i = 0; i < 5; ++i) {
      Request own = request(10);
      own.prompt.push_back(i);
      ASSERT_TRUE(engine.submit(std::move(own), [](const TokenEvent&) { return Demand::more; }).ok());
    }
    EXPECT_TRUE(engine.wait_idle(60.0));
  }
  EXPECT_EQ(generated, 50);
  EXPECT_EQ(intervals, 45);
  EXPECT_LE(prompt, 20);
  EXPECT_GT(steps, 9);
  EXPECT_EQ(requests, 5);
  EXPECT_EQ(reasons, std::set<FinishReason>{FinishReason::length});
}

}  // namespace
}  // namespace millrace
