// Levels that keep unequally many pages, in one pool: whose memory it is, in exact counts.

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "sched/scheduler.h"

namespace millrace {
namespace {

constexpr std::int32_t kPage = 16;

/// Four levels that keep 16 pages each, or 16 to `last`, with pages for `rows` rows.
SchedulerLimits limits(std::int32_t rows, std::int64_t last_pages = 16, std::int32_t swap_rows = 0,
                       std::vector<std::int32_t> pools = {0, 0, 0, 0}) {
  SchedulerLimits limits;
  limits.max_batch_tokens = 2048;
  limits.max_sequences = limits.max_logit_rows = 128;
  limits.share_answers = false;
  limits.kv = {.pages = rows,
               .page_tokens = kPage,
               .windows = std::vector<std::int64_t>(pools.size(), 0),
               .pools = std::move(pools),
               .swap_pages = swap_rows};
  limits.keep = {.choice = KeepChoice::recent,
                 .tokens = 16 * kPage,
                 .sink_tokens = kPage,
                 .recent_tokens = kPage,
                 .last_tokens = last_pages * kPage};
  return limits;
}

/// A prompt that begins as no other kind does.
SequenceSpec spec(std::int64_t prompt, std::int64_t most, std::int32_t kind) {
  SequenceSpec spec;
  spec.tokens.resize(static_cast<std::size_t>(prompt));
  std::iota(spec.tokens.begin(), spec.tokens.end(), 10000 * kind);
  spec.max_tokens = most;
  return spec;
}

StepPlan step(Scheduler& scheduler) {
  StepPlan plan = scheduler.schedule();
  const auto samples = std::ranges::count_if(plan.entries, &StepEntry::samples);
  scheduler.commit(plan, std::vector<std::int32_t>(static_cast<std::size_t>(samples), 7));
  scheduler.check();
  return plan;
}

/// Pages of each group's table that the sequences of a plan have.
std::vector<std::vector<std::int64_t>> pages_of(const Scheduler& scheduler, const StepPlan& plan) {
  std::vector<std::vector<std::int64_t>> pages;
  for (const StepEntry& entry : plan.entries) {
    pages.emplace_back();
    for (const PageTable& table : scheduler.sequence(entry).tables) {
      pages.back().push_back(std::ssize(table.entries()));
    }
  }
  return pages;
}

/// Sequences of the kind that run at once once all that can have been admitted.
std::int64_t at_once(const SchedulerLimits& limits, std::int64_t prompt, std::int64_t most, int arrivals) {
  Scheduler scheduler(limits);
  for (int i = 0; i < arrivals; ++i) {
    EXPECT_TRUE(scheduler.add(static_cast<SequenceId>(i), spec(prompt, most, i)).ok());
  }
  std::int64_t running = 0;
  for (std::int64_t i = 0; i < most - prompt - 8; ++i) {
    step(scheduler);
    running = std::max(running, scheduler.running());
  }
  EXPECT_EQ(scheduler.counters().preemptions, 0);
  return running;
}

TEST(Levels, EachKeepsItsOwnNumberOfPages) {
  Scheduler scheduler(limits(100, 4));
  ASSERT_TRUE(scheduler.add(1, spec(20 * kPage, 40 * kPage, 0)).ok());
  step(scheduler);  // the prompt, and what stays of it is decided
  using Pages = std::vector<std::vector<std::int64_t>>;
  EXPECT_EQ(pages_of(scheduler, step(scheduler)), (Pages{{17, 13, 9, 5}}));
  EXPECT_EQ(scheduler.counters().dropped_pages, 4 + 8 + 12 + 16);
  EXPECT_EQ(scheduler.counters().freed_pages, 40);
  for (int i = 0; i < 2 * kPage; ++i) step(scheduler);
  EXPECT_EQ(pages_of(scheduler, step(scheduler)), (Pages{{17, 13, 9, 5}}));
  // 44 pages of 400, in rows of 4.
  EXPECT_EQ(scheduler.kv_use().pages, 100);
  EXPECT_EQ(scheduler.kv_use().used_pages, 11);
}

TEST(Levels, AShortSequenceDropsInTheLastLevelsFirst) {
  Scheduler scheduler(limits(100, 4));
  ASSERT_TRUE(scheduler.add(1, spec(6 * kPage, 40 * kPage, 0)).ok());
  step(scheduler);
  using Pages = std::vector<std::vector<std::int64_t>>;
  EXPECT_EQ(pages_of(scheduler, step(scheduler)), (Pages{{7, 7, 7, 5}}));
  for (int i = 0; i < 4 * kPage; ++i) step(scheduler);
  EXPECT_EQ(pages_of(scheduler, step(scheduler)), (Pages{{11, 11, 9, 5}}));
  for (int i = 0; i < 10 * kPage; ++i) step(scheduler);
  EXPECT_EQ(pages_of(scheduler, step(scheduler)), (Pages{{17, 13, 9, 5}}));
}

// Room for 100 rows, which are 400 pages. A sequence is promised 17 pages of each level, or 17 + 13 + 9 + 5; and for
// one that is admitted a row stays free for each that runs: n of them need 4 * 17 n, or 44 n, and 4 (n - 1) beside.
TEST(Levels, MoreSequencesRunAtOnceInOnePool) {
  constexpr std::int64_t kPrompt = 4 * kPage, kMost = 60 * kPage;
  EXPECT_EQ(at_once(limits(100), kPrompt, kMost, 20), 5);
  EXPECT_EQ(at_once(limits(100, 4), kPrompt, kMost, 20), 8);
  EXPECT_EQ(at_once(limits(100, 4, 0, {0, 1, 2, 3}), kPrompt, kMost, 20), 5) << "pools of their own give nothing";
  // Two and two: the pool of the first levels, of 17 + 13 pages a sequence, has the say.
  EXPECT_EQ(at_once(limits(100, 4, 0, {0, 0, 1, 1}), kPrompt, kMost, 20), 6);
}

// A prompt is whole in all levels until its answer begins: one at a time takes 22 rows, the others what they keep.
TEST(Levels, LongPromptsAreAdmittedOneAfterTheOther) {
  constexpr std::int64_t kPrompt = 21 * kPage, kMost = 80 * kPage;
  EXPECT_EQ(at_once(limits(100), kPrompt, kMost, 20), 5);
  EXPECT_EQ(at_once(limits(100, 4), kPrompt, kMost, 20), 7);
}

TEST(Levels, NeverFewerThanWithEqualBudgets) {
  for (const std::int64_t prompt : {1, 3, 12, 17, 30}) {
    for (const std::int64_t answer : {1, 10, 40}) {
      std::int64_t before = 0;
      for (const std::int64_t last : {16, 12, 8, 4, 3}) {
        SCOPED_TRACE(std::to_string(prompt) + " pages of prompt, " + std::to_string(answer) + " of answer, " +
                     std::to_string(last) + " in the last level");
        const std::int64_t running = at_once(limits(70, last), prompt * kPage, (prompt + answer) * kPage + 8, 20);
        EXPECT_GE(running, before);
        before = running;
      }
    }
  }
}

TEST(Levels, WhatOneLevelDropsAnotherCanUse) {
  // 76 pages: a prompt of 18 rows takes 72 of them and is promised all. Then 44 are kept of it.
  Scheduler scheduler(limits(19, 4));
  ASSERT_TRUE(scheduler.add(1, spec(18 * kPage, 30 * kPage, 0)).ok());
  ASSERT_TRUE(scheduler.add(2, spec(7 * kPage - 1, 7 * kPage, 1)).ok());  // 28 pages, and 4 for the other
  step(scheduler);
  EXPECT_EQ(scheduler.running(), 1);
  step(scheduler);
  EXPECT_EQ(scheduler.running(), 2);
}

TEST(Levels, PagesAreSwappedBehindTheWholePool) {
  Scheduler scheduler(limits(20, 4, 11));
  ASSERT_TRUE(scheduler.add(1, spec(17 * kPage, 40 * kPage, 0)).ok());
  step(scheduler);
  step(scheduler);
  scheduler.hold(1, true);
  ASSERT_TRUE(scheduler.add(2, spec(17 * kPage, 17 * kPage + 1, 1)).ok());
  const StepPlan swapped_out = step(scheduler);
  EXPECT_EQ(scheduler.counters().swaps, 1);
  ASSERT_EQ(swapped_out.copies.size(), 44u);
  std::vector<std::int32_t> to;
  for (const PageCopy& copy : swapped_out.copies) {
    EXPECT_LT(copy.from, 80);
    to.push_back(copy.to);
  }
  std::ranges::sort(to);
  std::vector<std::int32_t> all(44);
  std::iota(all.begin(), all.end(), 80);
  EXPECT_EQ(to, all) << "of all levels, each page once";
  scheduler.finish(2);
  scheduler.hold(1, false);
  const StepPlan swapped_in = step(scheduler);
  ASSERT_EQ(swapped_in.copies.size(), 44u);
  for (std::size_t i = 0; i < 44; ++i) {
    EXPECT_EQ(swapped_in.copies[i].from, swapped_out.copies[i].to);
    EXPECT_EQ(swapped_in.copies[i].group, swapped_out.copies[i].group);
    EXPECT_LT(swapped_in.copies[i].to, 80);
  }
}

TEST(Levels, PagesThatOthersHaveGiveNoMemoryBack) {
  SchedulerLimits small_steps = limits(100, 4);
  small_steps.max_batch_tokens = 20 * kPage + 10;
  Scheduler scheduler(small_steps);
  ASSERT_TRUE(scheduler.add(1, spec(20 * kPage, 40 * kPage, 0)).ok());
  ASSERT_TRUE(scheduler.add(2, spec(40 * kPage, 60 * kPage, 0)).ok());  // begins with the other's prompt
  step(scheduler);
  EXPECT_EQ(scheduler.running(), 2);
  EXPECT_EQ(scheduler.counters().dropped_pages, 40);
  EXPECT_EQ(scheduler.counters().freed_pages, 0);
  step(scheduler);
  step(scheduler);
  // The second one drops pages 1 to 24, 28, 32 and 36; the first still holds 15, 11, 7 and 3 of them.
  EXPECT_EQ(scheduler.counters().dropped_pages, 40 + 120);
  EXPECT_EQ(scheduler.counters().freed_pages, 120 - 36);
  scheduler.finish(1);
  scheduler.finish(2);
  scheduler.check();
  EXPECT_EQ(scheduler.kv_use().used_pages, 0);
}

TEST(Levels, RefusesWithTheFiguresWhatCanNeverFit) {
  Scheduler scheduler(limits(12, 4));  // 48 pages: enough for 44, not for 17 in each
  EXPECT_TRUE(scheduler.add(1, spec(4 * kPage, 100 * kPage, 0)).ok());
  EXPECT_FALSE(scheduler.add(2, spec(12 * kPage, 100 * kPage, 0)).ok()) << "no row for the answer";
  Scheduler equal(limits(12));
  const Status refused = equal.add(1, spec(4 * kPage, 100 * kPage, 0));
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("64 tokens of prompt, or for 272 that are kept"), std::string::npos)
      << refused.error().message;
}

}  // namespace
}  // namespace millrace
