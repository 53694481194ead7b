#include "sched/scheduler.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace millrace {
namespace {

TEST(Scheduler, CutsAPromptIntoChunksAndSamplesAtItsEnd) {
  Scheduler scheduler({.max_batch_tokens = 64, .total_pages = 100});
  ASSERT_TRUE(scheduler.add(1, 150, 200).ok());
  for (const auto& [first, rows, samples] :
       std::vector<std::tuple<int, int, bool>>{{0, 64, false}, {64, 64, false}, {128, 22, true}}) {
    const StepPlan plan = scheduler.schedule();
    ASSERT_EQ(plan.entries.size(), 1u);
    EXPECT_EQ(plan.entries[0].first_position, first);
    EXPECT_EQ(plan.entries[0].rows, rows);
    EXPECT_EQ(plan.entries[0].samples, samples);
    scheduler.commit(plan);
  }
  const StepPlan decode = scheduler.schedule();
  EXPECT_EQ(decode.entries.at(0).first_position, 150);
  EXPECT_EQ(decode.entries.at(0).rows, 1);
}

TEST(Scheduler, ALongPromptDoesNotHoldUpRunningStreams) {
  Scheduler scheduler({.max_batch_tokens = 32, .total_pages = 1000});
  ASSERT_TRUE(scheduler.add(1, 8, 100).ok());
  scheduler.commit(scheduler.schedule());
  ASSERT_TRUE(scheduler.add(2, 5000, 5001).ok());
  for (int step = 0; step < 50; ++step) {
    const StepPlan plan = scheduler.schedule();
    ASSERT_EQ(plan.entries.size(), 2u);
    EXPECT_EQ(plan.entries[0].id, 1u);
    EXPECT_EQ(plan.entries[1].rows, 31);
    scheduler.commit(plan);
  }
}

TEST(Scheduler, RefusesWithTheFiguresWhatCanNeverFit) {
  Scheduler scheduler({.total_pages = 4, .page_tokens = 16});
  const Status refused = scheduler.add(1, 60, 65);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("65 tokens"), std::string::npos) << refused.error().message;
  EXPECT_NE(refused.error().message.find("64 tokens"), std::string::npos) << refused.error().message;
  EXPECT_TRUE(scheduler.add(1, 60, 64).ok());
}

TEST(Scheduler, WaitsForPagesAndTakesThemInOrderOfArrival) {
  Scheduler scheduler({.max_batch_tokens = 512, .total_pages = 4, .page_tokens = 16});
  ASSERT_TRUE(scheduler.add(1, 10, 48).ok());
  ASSERT_TRUE(scheduler.add(2, 10, 32).ok());
  ASSERT_TRUE(scheduler.add(3, 10, 16).ok());  // would fit beside 1, but 2 came first
  const StepPlan first = scheduler.schedule();
  ASSERT_EQ(first.entries.size(), 1u);
  scheduler.commit(first);
  scheduler.finish(1);
  EXPECT_EQ(scheduler.schedule().entries.size(), 2u);
}

// Random arrivals, lengths and cancellations: the token budget holds, rows follow one another without gap, everybody
// ends.
TEST(Scheduler, RandomLoadRunsEveryTokenOnceAndInOrder) {
  std::mt19937 random(7);
  const SchedulerLimits limits{.max_batch_tokens = 40, .max_sequences = 6, .total_pages = 30, .page_tokens = 16};
  Scheduler scheduler(limits);
  struct State {
    std::int64_t prompt, most, computed = 0, sampled = 0;
  };
  std::map<SequenceId, State> alive;
  SequenceId next = 1;
  std::size_t finished = 0;
  for (int step = 0; step < 20000; ++step) {
    if (next <= 1500 && random() % 3 == 0) {
      const std::int64_t prompt = 1 + static_cast<std::int64_t>(random() % 200);
      const std::int64_t most = prompt + 1 + static_cast<std::int64_t>(random() % 100);
      ASSERT_TRUE(scheduler.add(next, prompt, most).ok());
      alive[next++] = {prompt, most};
    }
    const StepPlan plan = scheduler.schedule();
    std::int64_t rows = 0;
    for (const StepEntry& entry : plan.entries) {
      State& state = alive.at(entry.id);
      ASSERT_EQ(entry.first_position, state.computed);
      state.computed += entry.rows;
      rows += entry.rows;
      ASSERT_EQ(entry.samples, state.computed == state.prompt + state.sampled);
      if (entry.samples) ++state.sampled;
      ASSERT_LE(state.computed, state.most);
    }
    ASSERT_LE(rows, limits.max_batch_tokens);
    ASSERT_LE(plan.entries.size(), static_cast<std::size_t>(limits.max_sequences));
    ASSERT_TRUE(!plan.empty() || alive.empty());
    scheduler.commit(plan);
    for (auto it = alive.begin(); it != alive.end();) {
      const bool done = it->second.prompt + it->second.sampled >= it->second.most;
      if (done || random() % 300 == 0) {
        scheduler.finish(it->first);
        it = alive.erase(it);
        ++finished;
      } else {
        ++it;
      }
    }
  }
  while (!alive.empty()) {
    scheduler.finish(alive.begin()->first);
    alive.erase(alive.begin());
    ++finished;
  }
  EXPECT_EQ(finished, next - 1);
  EXPECT_GT(finished, 100u);
  EXPECT_TRUE(scheduler.idle());
  ASSERT_TRUE(scheduler.add(next, 1, limits.total_pages * limits.page_tokens).ok());
  EXPECT_FALSE(scheduler.schedule().empty()) << "every reservation came back";
}

}  // namespace
}  // namespace millrace
