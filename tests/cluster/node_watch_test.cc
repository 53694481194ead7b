// What a gateway learns of one node: SpeedProfile, SloWatch, NodeWatch.
#include "cluster/node_watch.h"

#include <gtest/gtest.h>

#include <cmath>

#include "cluster/sim_network.h"
#include "cluster/slo_watch.h"
#include "observed_work.h"

namespace millrace {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(SpeedProfileTest, BeginsWithTheClaimAndLearnsWhatIsSeen) {
  const NodeSpeed claim{.prefill = 4000.0, .step = 0.005, .step_per_sequence = 0.0};
  const NodeSpeed real{.prefill = 900.0, .step = 0.03, .step_per_sequence = 0.002};
  SpeedProfile profile(claim);
  EXPECT_EQ(profile.speed(), claim);
  SimDice dice(5);
  for (int i = 0; i < 100; ++i) {
    const double noise = 0.95 + 0.1 * dice.uniform();
    const auto below = [&](std::uint64_t end) { return static_cast<std::int64_t>(dice.below(end)); };
    profile.observe(work_of(real, 64 + below(1000), 8 + below(100), static_cast<double>(below(12)), noise));
  }
  EXPECT_NEAR(profile.speed().prefill / real.prefill, 1.0, 0.1);
  EXPECT_NEAR(profile.speed().step / real.step, 1.0, 0.1);
  EXPECT_NEAR(profile.speed().step_per_sequence / real.step_per_sequence, 1.0, 0.2);
}

TEST(SpeedProfileTest, ASingleStrangeStreamChangesLittle) {
  const NodeSpeed real{.prefill = 1000.0, .step = 0.02, .step_per_sequence = 0.001};
  SpeedProfile profile(real);
  for (int i = 0; i < 50; ++i) profile.observe(work_of(real, 300, 50, i % 8));
  profile.observe(work_of(real, 300, 50, 3, 1000.0));
  EXPECT_LT(profile.speed().step, 1.5 * real.step);
  EXPECT_GT(profile.speed().prefill, 0.9 * real.prefill);
}

TEST(SpeedProfileTest, OneLoadForLongForgetsNothingOfTheOther) {
  const NodeSpeed real{.prefill = 1000.0, .step = 0.02, .step_per_sequence = 0.002};
  SpeedProfile profile(real);
  for (int i = 0; i < 5000; ++i) profile.observe(work_of(real, 300, 50, 6, 0.98 + 0.02 * (i % 3)));
  const NodeSpeed learned = profile.speed();
  EXPECT_NEAR((learned.step + 6 * learned.step_per_sequence) / (real.step + 6 * real.step_per_sequence), 1.0, 0.05);
  EXPECT_TRUE(std::isfinite(learned.step) && learned.step > 0.0);
  EXPECT_LE(learned.step_per_sequence, learned.step);
}

TEST(SpeedProfileTest, QueuesAndShortPromptsAreNotTakenForTheNodesRate) {
  const NodeSpeed real{.prefill = 1000.0, .step = 0.02};
  SpeedProfile profile(real);
  NodeWork work = work_of(real, 500, 1, 0, 10.0);
  work.queued = true;
  profile.observe(work);
  profile.observe(work_of(real, 3, 1, 0, 100.0));
  EXPECT_DOUBLE_EQ(profile.speed().prefill, real.prefill);
}

TEST(SloWatchTest, SaysOnceThatTheFirstTokenIsLate) {
  SloWatch watch;
  watch.placed(0.4, 0.01, 1, seconds(5));
  EXPECT_FALSE(watch.missed(seconds(5) + milliseconds(490)));
  EXPECT_TRUE(watch.missed(seconds(5) + milliseconds(510)));
  EXPECT_FALSE(watch.missed(seconds(60)));
}

TEST(SloWatchTest, TwoSlowWindowsAreAMissAndOneIsNot) {
  SloWatch watch;
  watch.placed(1.0, 0.01, 1, Instant{0});
  Instant now = milliseconds(100);
  int missed = 0;
  const auto tokens = [&](int count, milliseconds each) {
    for (int i = 0; i < count; ++i) {
      now += each;
      watch.token(now);
      missed += watch.missed(now) ? 1 : 0;
    }
  };
  tokens(100, milliseconds(10));
  EXPECT_EQ(missed, 0);
  tokens(8, milliseconds(30));  // less than two windows' time
  tokens(100, milliseconds(10));
  EXPECT_EQ(missed, 0) << "one slow window";
  tokens(40, milliseconds(30));
  EXPECT_GE(missed, 1);
  missed = 0;
  watch.held(now + seconds(100));  // the reader was away
  now += seconds(100);
  tokens(100, milliseconds(10));
  EXPECT_EQ(missed, 0);
}

TEST(SloWatchTest, WithoutObjectivesNothingIsMissed) {
  SloWatch watch;
  const double none = std::numeric_limits<double>::infinity();
  watch.placed(none, none, 1, Instant{0});
  EXPECT_FALSE(watch.missed(std::chrono::hours(1)));
  watch.token(std::chrono::hours(1));
  EXPECT_FALSE(watch.missed(std::chrono::hours(9)));
}

TEST(NodeWatchTest, KnowsItsOwnStreamsAtOnceAndOthersByBeats) {
  NodeWatch watch({.prefill = 1000.0, .step = 0.02, .step_per_sequence = 0.001});
  watch.beat({.running = 3, .waiting = 1, .waiting_tokens = 400, .kv_free = 5000}, 1.0);
  EXPECT_EQ(watch.load(1.0).running, 4);
  EXPECT_EQ(watch.load(1.0).waiting_tokens, 400);
  NodeWork work{.prompt_tokens = 600, .expected_cached = 100, .choices = 2, .placed = seconds(1)};
  watch.placed(work, 1.0);
  EXPECT_TRUE(work.queued);
  EXPECT_TRUE(watch.computes());
  EXPECT_EQ(watch.load(1.0).running, 6);
  EXPECT_EQ(watch.load(1.0).waiting_tokens, 900);
  EXPECT_EQ(watch.load(1.2).waiting_tokens, 700) << "200 of its own have been computed since";
  EXPECT_EQ(watch.load(1.0).kv_free, 4500);
  work.first = time_of(1.5);
  watch.began(work, 1.5);
  EXPECT_FALSE(watch.computes());
  EXPECT_EQ(work.beside, 4.0);
  watch.beat({.running = 2, .kv_free = 6000}, 2.0);
  work.tokens = 40;
  work.last = time_of(2.5);
  watch.left(work, 2.5);
  EXPECT_EQ(work.beside, 2.0) << "on an average";
  EXPECT_EQ(watch.load(2.5).running, 0);
}

/// A stream alone on a node that should be as fast as `speed`, and takes so many times as long.
NodeWork run_alone(NodeWatch& watch, const NodeSpeed& speed, double now, double off) {
  NodeWork work = work_of(speed, 500, 50, 0, off);
  const Duration later = time_of(now) - work.placed;
  work.placed += later;
  work.first += later;
  work.last += later;
  const auto seconds_of = [](Duration time) { return std::chrono::duration<double>(time).count(); };
  watch.placed(work, now);
  watch.began(work, seconds_of(work.first));
  watch.left(work, seconds_of(work.last));
  return work;
}

TEST(NodeWatchTest, HopesMoreOfASlowNodeTheLongerItRests) {
  const NodeSpeed claim{.prefill = 1000.0, .step = 0.02, .step_per_sequence = 0.001};
  NodeWatch watch(claim);
  EXPECT_FALSE(watch.hoped(0.0)) << "nothing else is known of it";
  for (int i = 0; i < 10; ++i) EXPECT_FALSE(run_alone(watch, claim, 1.0, 3.0).trial);
  const double slow = watch.speed().step, left = 1.0 + 3.0 * (0.5 + 0.02 + 49 * 0.02);
  EXPECT_NEAR(slow, 0.06, 0.01);
  double before = slow;
  for (double rest = 1.0; rest < 100.0; rest *= 2.0) {
    const auto hoped = watch.hoped(left + rest);
    ASSERT_TRUE(hoped);
    EXPECT_LT(hoped->step, before);
    EXPECT_GE(hoped->step, claim.step);
    EXPECT_LE(hoped->prefill, claim.prefill);
    before = hoped->step;
  }
  EXPECT_NEAR(before, claim.step, 0.001);
  EXPECT_EQ(watch.speed().step, slow) << "that is what was seen";
}

TEST(NodeWatchTest, ATrialEndsTheRestAndCountsForMoreThanWhatIsLongAgo) {
  const NodeSpeed claim{.prefill = 1000.0, .step = 0.02, .step_per_sequence = 0.001};
  NodeWatch watch(claim);
  for (int i = 0; i < 40; ++i) run_alone(watch, claim, 1.0, 3.0);
  EXPECT_FALSE(run_alone(watch, claim, 6.0, 3.0).trial) << "it was there a moment ago";
  NodeWork other{.prompt_tokens = 100, .placed = seconds(100)};
  watch.placed(other, 100.0);
  EXPECT_TRUE(other.trial);
  EXPECT_FALSE(watch.hoped(200.0)) << "something of this gateway's is there";
  watch.left(other, 200.0);
  EXPECT_TRUE(run_alone(watch, claim, 300.0, 1.0).trial);
  EXPECT_LT(watch.speed().step, 1.1 * claim.step) << "one of now, and forty of long ago";
  EXPECT_FALSE(watch.rests());
}

TEST(NodeWatchTest, TrialsBecomeRare) {
  const NodeSpeed claim{.prefill = 1000.0, .step = 0.02, .step_per_sequence = 0.001};
  NodeWatch watch(claim);
  for (int i = 0; i < 20; ++i) run_alone(watch, claim, 1.0, 5.0);
  double now = 10.0, before = 0.0;
  const auto rest_until_tried = [&] {
    const double from = now;
    while (watch.hoped(now) && watch.hoped(now)->step > 1.5 * claim.step) now += 0.5;
    const double rested = now - from;
    EXPECT_TRUE(run_alone(watch, claim, now, 5.0).trial);
    now += 10.0;
    return rested;
  };
  for (int i = 0; i < 6; ++i) {
    const double rested = rest_until_tried();
    EXPECT_GT(rested, 1.5 * before);
    before = rested;
  }
  for (int i = 0; i < 10; ++i) before = rest_until_tried();
  EXPECT_LT(before, 2400.0) << "but go on";
  watch.claims(claim);
  for (int i = 0; i < 20; ++i) run_alone(watch, claim, now, 5.0);
  now += 10.0;
  EXPECT_LT(rest_until_tried(), 60.0) << "of what says another speed nothing is known";
}

TEST(NodeWatchTest, NothingIsLearnedOfLimitsFromTrials) {
  const NodeSpeed speed{.prefill = 1000.0, .step = 0.01, .step_per_sequence = 0.0};
  Router router;
  router.set_node(0, {.speed = speed});
  NodeWork late = work_of(speed, 1000, 50, 0.0, 1.3);
  late.ttft_slo = 1.2;
  late.within_slo = late.trial = true;
  for (int i = 0; i < 100; ++i) tell_kept(router, late, 9.0);
  EXPECT_TRUE(router.pick({.prompt_tokens = 1000, .answer_tokens = 100, .ttft_slo = 1.2}, 1).at(0).within_slo);
}

TEST(NodeWatchTest, TellsTheRouterWhatKept) {
  const NodeSpeed speed{.prefill = 1000.0, .step = 0.01, .step_per_sequence = 0.0};
  Router router;
  router.set_node(0, {.speed = speed});
  const RouteRequest request{.prompt_tokens = 1000, .answer_tokens = 100, .ttft_slo = 1.2, .tpot_slo = 1.0};
  NodeWork late = work_of(speed, 1000, 50, 0.0, 1.3);
  late.ttft_slo = 1.2;
  const auto within = [&] { return router.pick(request, 1).at(0).within_slo; };
  for (int i = 0; i < 10; ++i) tell_kept(router, late, 9.0);
  EXPECT_TRUE(within()) << "nobody had said that it would keep it";
  late.within_slo = true;
  for (int i = 0; i < 10; ++i) tell_kept(router, late, 9.0);
  EXPECT_FALSE(within());
}

TEST(ExpectedAnswerTest, FollowsWhatEnds) {
  ExpectedAnswer expected;
  EXPECT_EQ(expected.tokens(), 256.0);
  for (int i = 0; i < 400; ++i) expected.ended(i % 2 == 0 ? 20 : 40);
  EXPECT_NEAR(expected.tokens(), 30.0, 6.0);
}

}  // namespace
}  // namespace millrace
