#include "sched/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

namespace millrace {
namespace {

using Tokens = std::vector<std::int32_t>;

SchedulerLimits limits(std::int32_t budget, std::int32_t pages, std::vector<std::int64_t> windows = {0}) {
  SchedulerLimits limits;
  limits.max_batch_tokens = budget;
  limits.kv = {.pages = pages, .page_tokens = 16, .windows = std::move(windows)};
  return limits;
}

/// `prompt` tokens that no other `kind` begins with.
SequenceSpec spec(std::int64_t prompt, std::int64_t most, std::int32_t kind = 0) {
  SequenceSpec spec;
  spec.tokens.resize(static_cast<std::size_t>(prompt));
  std::iota(spec.tokens.begin(), spec.tokens.end(), 10000 * kind);
  spec.max_tokens = most;
  return spec;
}

/// Runs a plan whose samples are all `token`.
void commit(Scheduler& scheduler, const StepPlan& plan, std::int32_t token = 7) {
  Tokens sampled;
  for (const StepEntry& entry : plan.entries) {
    if (entry.samples) sampled.push_back(token);
  }
  scheduler.commit(plan, sampled);
  scheduler.check();
}

StepPlan step(Scheduler& scheduler, std::int32_t token = 7) {
  StepPlan plan = scheduler.schedule();
  commit(scheduler, plan, token);
  return plan;
}

const StepEntry* entry_of(const StepPlan& plan, SequenceId id) {
  for (const StepEntry& entry : plan.entries) {
    if (entry.id == id) return &entry;
  }
  return nullptr;
}

TEST(Scheduler, CutsAPromptIntoChunksAndSamplesAtItsEnd) {
  Scheduler scheduler(limits(64, 100));
  ASSERT_TRUE(scheduler.add(1, spec(150, 200)).ok());
  for (const auto& [first, rows, samples] :
       std::vector<std::tuple<int, int, bool>>{{0, 64, false}, {64, 64, false}, {128, 22, true}}) {
    const StepPlan plan = step(scheduler);
    ASSERT_EQ(plan.entries.size(), 1u);
    EXPECT_EQ(plan.entries[0].first_position, first);
    EXPECT_EQ(plan.entries[0].rows, rows);
    EXPECT_EQ(plan.entries[0].samples, samples);
  }
  const StepPlan decode = scheduler.schedule();
  EXPECT_EQ(decode.entries.at(0).first_position, 150);
  EXPECT_EQ(decode.entries.at(0).rows, 1);
  EXPECT_EQ(scheduler.sequence(decode.entries[0]).tokens.back(), 7);
}

TEST(Scheduler, ALongPromptDoesNotHoldUpRunningStreams) {
  Scheduler scheduler(limits(33, 1000));
  ASSERT_TRUE(scheduler.add(1, spec(8, 100)).ok());
  step(scheduler);
  ASSERT_TRUE(scheduler.add(2, spec(5000, 5001, 1)).ok());
  for (int i = 0; i < 50; ++i) {
    const StepPlan plan = step(scheduler);
    ASSERT_EQ(plan.entries.size(), 2u);
    EXPECT_EQ(plan.entries[0].id, 1u);
    EXPECT_EQ(plan.entries[1].rows, 32) << "whole pages of what is left";
  }
}

TEST(Scheduler, RefusesWithTheFiguresWhatCanNeverFit) {
  Scheduler scheduler(limits(512, 4));
  const Status refused = scheduler.add(1, spec(60, 65));
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("65 tokens"), std::string::npos) << refused.error().message;
  EXPECT_NE(refused.error().message.find("64 tokens"), std::string::npos) << refused.error().message;
  EXPECT_TRUE(scheduler.add(1, spec(60, 64)).ok());
}

TEST(Scheduler, WaitsForPagesAndTakesThemInOrderOfArrival) {
  Scheduler scheduler(limits(512, 4));
  ASSERT_TRUE(scheduler.add(1, spec(40, 48, 1)).ok());
  ASSERT_TRUE(scheduler.add(2, spec(20, 32, 2)).ok());
  ASSERT_TRUE(scheduler.add(3, spec(5, 16, 3)).ok());  // would fit beside 1, but 2 came first
  const StepPlan first = step(scheduler);
  ASSERT_EQ(first.entries.size(), 1u);
  scheduler.finish(1);
  EXPECT_EQ(scheduler.schedule().entries.size(), 2u);
}

TEST(Scheduler, PriorityGoesFirstAndOvertakesOnlySoMany) {
  Scheduler scheduler([] {
    SchedulerLimits one = limits(512, 100);
    one.max_sequences = 1;
    return one;
  }());
  ASSERT_TRUE(scheduler.add(1, spec(4, 5, 1)).ok());
  SequenceSpec urgent = spec(4, 5, 2);
  urgent.priority = -1;
  for (SequenceId id = 2; id < 2 + Scheduler::kOvertaking + 5; ++id) ASSERT_TRUE(scheduler.add(id, urgent).ok());
  int passed = 0;
  while (true) {
    const StepPlan plan = step(scheduler);
    ASSERT_EQ(plan.entries.size(), 1u);
    const SequenceId id = plan.entries[0].id;
    scheduler.finish(id);
    if (id == 1) break;
    ++passed;
  }
  EXPECT_EQ(passed, Scheduler::kOvertaking - 1) << "the arrivals 1 .. 63, which count as -63 .. -1";
}

TEST(Scheduler, TheFarthestPrioritiesDoNotOverflow) {
  Scheduler scheduler(limits(512, 100));
  SequenceSpec last = spec(4, 5, 1), first = spec(4, 5, 2);
  last.priority = std::numeric_limits<std::int32_t>::max();
  first.priority = std::numeric_limits<std::int32_t>::min();
  ASSERT_TRUE(scheduler.add(1, last).ok());
  ASSERT_TRUE(scheduler.add(2, first).ok());
  EXPECT_EQ(scheduler.schedule().entries.at(0).id, 2u);
}

TEST(Scheduler, TakesSharedRowsFromWhoComputesThemInTheSameStep) {
  Scheduler scheduler(limits(128, 100));
  ASSERT_TRUE(scheduler.add(1, spec(100, 110)).ok());
  ASSERT_TRUE(scheduler.add(2, spec(100, 110)).ok());
  const StepPlan plan = step(scheduler);
  ASSERT_EQ(plan.entries.size(), 1u) << "the second can copy the last four tokens a step later";
  EXPECT_EQ(plan.entries[0].rows, 100);
  const StepPlan next = step(scheduler);
  ASSERT_EQ(next.entries.size(), 2u);
  EXPECT_EQ(next.entries[1].first_position, 99) << "one token is always computed";
  EXPECT_EQ(next.entries[1].rows, 1);
  ASSERT_EQ(next.copies.size(), 1u);
  EXPECT_EQ(scheduler.cached_tokens(2), 99);
  EXPECT_EQ(scheduler.kv_use().used_pages, 8) << "six shared ones and a last one each";
  EXPECT_EQ(scheduler.counters().computed_tokens, 102);
  EXPECT_EQ(scheduler.counters().admitted_tokens, 200);
}

TEST(Scheduler, FollowsALongPromptOfItsOwnInsteadOfComputingItTwice) {
  Scheduler scheduler(limits(64, 200));
  ASSERT_TRUE(scheduler.add(1, spec(1000, 1010)).ok());
  step(scheduler);
  ASSERT_TRUE(scheduler.add(2, spec(1000, 1010)).ok());
  for (int i = 0; i < 40 && scheduler.counters().computed_tokens < 1010; ++i) step(scheduler);
  EXPECT_GE(scheduler.cached_tokens(2), 990);
}

TEST(Scheduler, TreesOfTheCacheShareNothing) {
  Scheduler scheduler(limits(512, 100));
  SequenceSpec mine = spec(64, 70), yours = spec(64, 70);
  mine.cache_name = "mine";
  yours.cache_name = "yours";
  ASSERT_TRUE(scheduler.add(1, mine).ok());
  ASSERT_TRUE(scheduler.add(2, yours).ok());
  step(scheduler);
  EXPECT_EQ(scheduler.cached_tokens(2), 0);
  ASSERT_TRUE(scheduler.add(3, mine).ok());
  step(scheduler);
  EXPECT_EQ(scheduler.cached_tokens(3), 63);
}

TEST(Scheduler, ConversationsFindWhatWasGenerated) {
  Scheduler scheduler(limits(512, 100));
  ASSERT_TRUE(scheduler.add(1, spec(20, 40)).ok());
  for (int i = 0; i < 20; ++i) step(scheduler, 5);
  scheduler.finish(1);
  SequenceSpec next = spec(20, 100);
  next.tokens.insert(next.tokens.end(), 20, 5);
  next.tokens.insert(next.tokens.end(), 10, 6);
  ASSERT_TRUE(scheduler.add(2, next).ok());
  step(scheduler);
  EXPECT_EQ(scheduler.cached_tokens(2), 39) << "the last token that was sampled was never run";
}

TEST(Scheduler, PreemptsTheLastInRankAndGoesOnWithItLater) {
  Scheduler scheduler(limits(512, 4));
  ASSERT_TRUE(scheduler.add(1, spec(15, 60, 1)).ok());
  ASSERT_TRUE(scheduler.add(2, spec(15, 40, 2)).ok());
  std::int64_t second = 15;
  for (int i = 0; i < 200 && (scheduler.contains(1) || scheduler.contains(2)); ++i) {
    const StepPlan plan = scheduler.schedule();
    ASSERT_FALSE(plan.empty());
    ASSERT_EQ(entry_of(plan, 1) != nullptr, scheduler.contains(1)) << "the first always gets on";
    std::vector<SequenceId> done;
    for (const StepEntry& entry : plan.entries) {
      const std::int64_t end = entry.first_position + entry.rows;
      if (entry.id == 2 && entry.samples) {
        ASSERT_EQ(end, second++) << "no token is sampled twice";
      }
      if (entry.samples && end + 1 == (entry.id == 1 ? 60 : 40)) done.push_back(entry.id);
    }
    commit(scheduler, plan);
    for (const SequenceId id : done) scheduler.finish(id);
  }
  EXPECT_TRUE(scheduler.idle());
  EXPECT_GE(scheduler.counters().preemptions, 1);
  EXPECT_EQ(second, 40);
}

TEST(Scheduler, ASequenceOfTheWholePoolRunsAlsoWhenPartOfItIsCached) {
  Scheduler scheduler(limits(512, 4));
  ASSERT_TRUE(scheduler.add(1, spec(24, 25)).ok());
  step(scheduler);
  scheduler.finish(1);
  SequenceSpec other = spec(40, 64);
  other.tokens.resize(22);
  other.tokens.resize(60, 3);
  ASSERT_TRUE(scheduler.add(2, other).ok());  // one whole row and six tokens of the second are known
  EXPECT_FALSE(step(scheduler).empty());
  EXPECT_EQ(scheduler.cached_tokens(2), 16) << "no page is left to copy from";
}

TEST(Scheduler, WhoSharesNothingComputesWhatIsCachedWithoutTakingItsPagesTwice) {
  Scheduler scheduler(limits(16, 4));
  for (SequenceId id = 1; id <= 3; ++id) {
    SequenceSpec whole = spec(64, 64);
    whole.shares = false;
    ASSERT_TRUE(scheduler.add(id, whole).ok());
    for (int i = 0; i < 4; ++i) EXPECT_EQ(step(scheduler).entries.at(0).rows, 16);
    EXPECT_EQ(scheduler.kv_use().used_pages, 4);
    scheduler.finish(id);
    EXPECT_EQ(scheduler.kv_use().cached_pages, 4);
  }
}

TEST(Scheduler, HeldSequencesGiveWayToThoseWhoWait) {
  SchedulerLimits one = limits(512, 4);
  one.max_sequences = 1;
  Scheduler scheduler(one);
  ASSERT_TRUE(scheduler.add(1, spec(40, 64, 1)).ok());
  step(scheduler);
  scheduler.hold(1, true);
  EXPECT_TRUE(scheduler.schedule().empty());
  ASSERT_TRUE(scheduler.add(2, spec(40, 64, 2)).ok());
  EXPECT_EQ(step(scheduler).entries.at(0).id, 2u) << "nothing else could run";
  scheduler.finish(2);
  EXPECT_TRUE(scheduler.schedule().empty());
  scheduler.hold(1, false);
  const StepPlan again = step(scheduler);
  ASSERT_EQ(again.entries.size(), 1u);
  EXPECT_TRUE(again.entries[0].samples);
}

TEST(Scheduler, AHeldSequenceKeepsItsPlaceForAWhileWhileOthersRun) {
  SchedulerLimits two = limits(512, 100);
  two.max_sequences = 2;
  Scheduler scheduler(two);
  for (SequenceId id = 1; id <= 3; ++id) ASSERT_TRUE(scheduler.add(id, spec(8, 500, static_cast<int>(id))).ok());
  step(scheduler);
  scheduler.hold(2, true);
  int steps = 0;
  while (entry_of(step(scheduler), 3) == nullptr) ++steps;
  EXPECT_EQ(steps, Scheduler::kHoldPatience - 1);
}

TEST(Scheduler, PlansTheNextStepBeforeTheTokensOfTheLastAreKnown) {
  Scheduler scheduler(limits(512, 100));
  ASSERT_TRUE(scheduler.add(1, spec(16, 19)).ok());
  const StepPlan a = scheduler.schedule();
  const StepPlan b = scheduler.schedule();
  const StepPlan c = scheduler.schedule();
  const StepPlan none = scheduler.schedule();
  EXPECT_EQ(a.entries.at(0).rows, 16);
  EXPECT_EQ(b.entries.at(0).first_position, 16);
  EXPECT_EQ(c.entries.at(0).first_position, 17);
  EXPECT_TRUE(c.entries[0].samples);
  EXPECT_TRUE(none.empty()) << "the token at 18 is the last, and nobody needs what comes of it";
  for (const StepPlan* plan : {&a, &b, &c}) commit(scheduler, *plan);
  EXPECT_TRUE(scheduler.schedule().empty());
}

TEST(Scheduler, AnEntryWhoseSequenceIsOverIsPassedOver) {
  Scheduler scheduler(limits(512, 100));
  ASSERT_TRUE(scheduler.add(1, spec(20, 30, 1)).ok());
  ASSERT_TRUE(scheduler.add(2, spec(20, 30, 2)).ok());
  const StepPlan plan = scheduler.schedule();
  scheduler.finish(1);
  ASSERT_TRUE(scheduler.add(3, spec(20, 30, 3)).ok());  // where 1 was
  scheduler.commit(plan, Tokens{100, 200});
  const StepPlan next = scheduler.schedule();
  ASSERT_NE(entry_of(next, 2), nullptr);
  EXPECT_EQ(scheduler.sequence(*entry_of(next, 2)).tokens.back(), 200);
  ASSERT_NE(entry_of(next, 3), nullptr);
  EXPECT_EQ(scheduler.sequence(*entry_of(next, 3)).tokens.size(), 20u);
}

TEST(Scheduler, WithoutSamplesItIsThroughWithThePrompt) {
  Scheduler scheduler(limits(16, 100));
  SequenceSpec silent = spec(32, 100, 1);
  silent.samples = false;
  ASSERT_TRUE(scheduler.add(1, silent).ok());
  ASSERT_TRUE(scheduler.add(2, spec(16, 16, 2)).ok());  // no room for an answer
  for (int i = 0; i < 3; ++i) {
    const StepPlan plan = step(scheduler);
    ASSERT_EQ(plan.entries.size(), 1u);
    EXPECT_EQ(plan.entries[0].rows, 16);
    EXPECT_FALSE(plan.entries[0].samples);
  }
  EXPECT_TRUE(scheduler.schedule().empty());
}

TEST(Scheduler, ManyLogitsHoldUpNobodyWhoWantsNone) {
  SchedulerLimits few = limits(128, 100);
  few.max_sequences = few.max_logit_rows = 4;
  Scheduler scheduler(few);
  SequenceSpec scored = spec(64, 64, 1);
  scored.all_logits = true;
  ASSERT_TRUE(scheduler.add(1, scored).ok());
  ASSERT_TRUE(scheduler.add(2, spec(40, 50, 2)).ok());
  const StepPlan plan = step(scheduler);
  ASSERT_EQ(plan.entries.size(), 2u);
  EXPECT_EQ(plan.entries[0].rows, 4);
  EXPECT_EQ(plan.entries[1].rows, 39) << "all but the row whose logits it needs";
  const StepPlan next = step(scheduler);
  ASSERT_NE(entry_of(next, 2), nullptr);
  EXPECT_TRUE(entry_of(next, 2)->samples);
  EXPECT_EQ(entry_of(next, 1)->rows, 3);
}

TEST(Scheduler, WindowsGiveTheirPagesBackAStepLate) {
  Scheduler scheduler(limits(64, 40, {0, 32}));
  ASSERT_TRUE(scheduler.add(1, spec(256, 300)).ok());
  for (int i = 0; i < 4; ++i) step(scheduler);
  const StepPlan plan = scheduler.schedule();
  const SequenceView view = scheduler.sequence(plan.entries.at(0));
  EXPECT_GE(view.tables[0].entries().front(), 0);
  EXPECT_EQ(view.tables[1].entries().front(), -1);
  EXPECT_EQ(std::ranges::count(view.tables[1].entries(), -1), (256 - 31) / 16);
}

TEST(Scheduler, CancelLeavesEveryPageFreeOrCached) {
  Scheduler scheduler(limits(48, 40));
  for (SequenceId id = 1; id <= 6; ++id) ASSERT_TRUE(scheduler.add(id, spec(50, 90, static_cast<int>(id % 3))).ok());
  for (int i = 0; i < 5; ++i) step(scheduler);
  const StepPlan plan = scheduler.schedule();
  for (SequenceId id = 1; id <= 6; ++id) scheduler.finish(id);
  commit(scheduler, plan);
  EXPECT_TRUE(scheduler.idle());
  EXPECT_EQ(scheduler.kv_use().used_pages, 0);
  EXPECT_EQ(scheduler.kv_use().unused_slots, 0);
  ASSERT_TRUE(scheduler.add(7, spec(640, 640, 9)).ok());
  EXPECT_FALSE(scheduler.schedule().empty());
}

/// With another plan made behind it: whoever had a part in either begins again, and nobody is given what they stored.
TEST(Scheduler, AnAbandonedPlanLeavesNothingBehind) {
  Scheduler scheduler(limits(64, 40));
  ASSERT_TRUE(scheduler.add(1, spec(40, 60)).ok());
  ASSERT_TRUE(scheduler.add(2, spec(20, 60, 1)).ok());
  step(scheduler);
  scheduler.hold(2, true);  // it keeps what it has
  ASSERT_TRUE(scheduler.add(3, spec(48, 60, 2)).ok());
  ASSERT_TRUE(scheduler.add(4, spec(48, 60, 2)).ok());
  const std::int64_t cached = scheduler.kv_use().cached_pages;
  const StepPlan lost = scheduler.schedule();
  ASSERT_NE(entry_of(lost, 1), nullptr);
  ASSERT_NE(entry_of(lost, 3), nullptr);
  const StepPlan behind = scheduler.schedule();
  ASSERT_NE(entry_of(behind, 1), nullptr);
  ASSERT_NE(entry_of(behind, 4), nullptr) << "it has what the third was to store";
  EXPECT_EQ(entry_of(behind, 4)->first_position, 47);
  scheduler.abandon(lost);
  scheduler.check();
  EXPECT_EQ(scheduler.running(), 1);
  EXPECT_EQ(scheduler.waiting(), 3);
  EXPECT_EQ(scheduler.kv_use().used_pages, 2);
  EXPECT_EQ(scheduler.kv_use().cached_pages, cached + 3) << "of the first, from before";
  scheduler.hold(2, false);
  const StepPlan again = scheduler.schedule();
  ASSERT_EQ(again.entries.size(), 3u);
  EXPECT_EQ(entry_of(again, 2)->first_position, 20);
  EXPECT_EQ(entry_of(again, 1)->first_position, 40) << "of which a part is copied; 41 tokens are known";
  EXPECT_EQ(entry_of(again, 1)->rows, 1);
  EXPECT_EQ(entry_of(again, 3)->first_position, 0);
  EXPECT_EQ(scheduler.sequence(*entry_of(again, 1)).tokens.size(), 41u);
  commit(scheduler, again);
  for (int i = 0; i < 30; ++i) step(scheduler);
  for (SequenceId id = 1; id <= 4; ++id) scheduler.finish(id);
  scheduler.check();
  EXPECT_EQ(scheduler.kv_use().used_pages, 0);
}

/// One that catches up in the step, and has no row in it, has been given pages all the same.
TEST(Scheduler, WhoCatchesUpInAStepThatIsAbandonedBeginsAgain) {
  SchedulerLimits few = limits(32, 40);
  few.max_sequences = few.max_logit_rows = 3;
  Scheduler scheduler(few);
  ASSERT_TRUE(scheduler.add(1, spec(49, 60)).ok());
  ASSERT_EQ(step(scheduler).entries[0].rows, 32);
  SequenceSpec says_all = spec(10, 20, 1), first = spec(100, 110);
  says_all.all_logits = true;
  says_all.priority = -2;
  first.priority = -1;
  ASSERT_TRUE(scheduler.add(2, says_all).ok());
  ASSERT_TRUE(scheduler.add(3, first).ok());
  const StepPlan lost = scheduler.schedule();
  ASSERT_EQ(lost.entries.size(), 2u);
  EXPECT_EQ(entry_of(lost, 2)->rows, 3) << "and no logits are left";
  EXPECT_EQ(entry_of(lost, 3)->first_position, 32);
  EXPECT_EQ(entry_of(lost, 3)->rows, 16) << "which the first has now, too";
  scheduler.abandon(lost);
  for (const SequenceId id : {2, 3}) scheduler.finish(id);
  scheduler.check();
  const StepPlan again = step(scheduler);
  ASSERT_EQ(again.entries.size(), 1u);
  EXPECT_EQ(again.entries[0].first_position, 32);
  EXPECT_EQ(again.entries[0].rows, 17);
}

TEST(SchedulerDeathTest, WhatIsLostIsNeverCommitted) {
  Scheduler scheduler(limits(64, 40));
  ASSERT_TRUE(scheduler.add(1, spec(40, 60)).ok());
  const StepPlan lost = scheduler.schedule();
  scheduler.abandon(lost);
  EXPECT_DEATH(commit(scheduler, lost), "plan 1 is committed, and those up to 1 are lost");
}

TEST(Scheduler, SaltsLeaveNothingBehind) {
  Scheduler scheduler(limits(512, 8));
  for (SequenceId id = 1; id <= 500; ++id) {
    SequenceSpec salted = spec(20, 21);
    salted.cache_name = "salt " + std::to_string(id);
    ASSERT_TRUE(scheduler.add(id, salted).ok());
    step(scheduler);
    scheduler.finish(id);
    EXPECT_LE(scheduler.kv_use().cached_pages, 8);
  }
}

}  // namespace
}  // namespace millrace
