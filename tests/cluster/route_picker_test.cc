#include "cluster/route_picker.h"

#include <gtest/gtest.h>

#include <cmath>

#include "observed_work.h"

namespace millrace {
namespace {

using std::chrono::seconds;

/// A table of nodes, and a picker that looks at it at an hour of the day.
class RoutePickerTest : public testing::Test {
 protected:
  void add(const std::string& name, const NodeTerms& terms, const NodeSpeed& speed = {},
           const std::string& numeric_class = "c") {
    NodeModel model{.name = "m", .numeric_class = numeric_class, .speed = speed};
    table_.set_record({.node = name, .models = {model}}, 1);
    table_.set_terms(name, terms);
    table_.beat(name, {.incarnation = 1, .number = ++beats_}, Duration{1});
  }

  std::string pick(ServiceWish wish = {}, std::vector<std::string> avoid = {}, double now = 0.0) {
    const Placement placement{.model = "m", .prompt = std::vector<std::int32_t>(100, 1), .max_new_tokens = 100};
    const auto picked = picker_.pick({placement, wish, {}, avoid}, table_, now);
    return picked ? picked->node : "";
  }

  static NodeTerms priced(double usd_per_hour) { return {.usd_per_hour = usd_per_hour}; }

  double hour_ = 12.0;
  std::uint64_t beats_ = 0;
  NodeTable table_{ClusterTiming{}};
  RoutePicker picker_{{.model = "m", .wall = [this] { return UnixSeconds(hour_ * 3600.0); }}};
};

TEST_F(RoutePickerTest, GoesByTermsOfOperators) {
  EXPECT_EQ(pick(), "");
  add("dear", priced(2.0));
  EXPECT_EQ(pick(), "dear");
  add("cheap", priced(0.1));
  EXPECT_EQ(pick(), "cheap");
  table_.set_terms("cheap", priced(5.0));
  EXPECT_EQ(pick(), "dear") << "terms may change while it serves";
}

TEST_F(RoutePickerTest, FollowsTariffsThroughTheDay) {
  NodeTerms day{.usd_per_hour = 0.01, .busy_watts = 1000, .tariff = {.name = "day"}}, night = day;
  for (std::size_t hour = 0; hour < 24; ++hour) {
    const bool dark = hour < 6 || hour >= 22;
    day.tariff.usd_per_kwh[hour] = dark ? 0.5 : 0.1;
    night.tariff.usd_per_kwh[hour] = dark ? 0.1 : 0.5;
  }
  add("a-day", day);
  add("b-night", night);
  EXPECT_EQ(pick(), "a-day");
  hour_ = 23.5;
  EXPECT_EQ(pick(), "b-night");
  hour_ = 31.0;
  EXPECT_EQ(pick(), "a-day");
}

TEST_F(RoutePickerTest, KeepsToWhatRequestsWish) {
  NodeTerms trusted = priced(3.0);
  trusted.trusted = true;
  trusted.region = "eu";
  NodeTerms labelled = priced(1.0);
  labelled.labels = {"green", "night"};
  add("open", priced(0.1));
  add("trusted", trusted);
  add("labelled", labelled);
  EXPECT_EQ(pick(), "open");
  EXPECT_EQ(pick({.trusted = true}), "trusted");
  EXPECT_EQ(pick({.region = "eu"}), "trusted");
  EXPECT_EQ(pick({.region = "us"}), "");
  EXPECT_EQ(pick({.labels = {"green"}}), "labelled");
  EXPECT_EQ(pick({.labels = {"green", "gold"}}), "");
  EXPECT_EQ(pick({.labels = {"green"}, .trusted = true}), "");
  EXPECT_EQ(pick({}, {"open"}), "labelled");
}

TEST_F(RoutePickerTest, KeepsWithinObjectives) {
  add("slow", priced(0.1), {.prefill = 500, .step = 0.1, .step_per_sequence = 0.0});
  add("fast", priced(3.0), {.prefill = 5000, .step = 0.01, .step_per_sequence = 0.0});
  EXPECT_EQ(pick(), "slow");
  EXPECT_EQ(pick({.tpot_slo = 0.05}), "fast");
  EXPECT_EQ(pick({.ttft_slo = 0.1}), "fast");
}

TEST_F(RoutePickerTest, AClaimOfSpeedIsBelievedUntilItIsSeen) {
  add("boaster", priced(1.0), {.prefill = 50000, .step = 0.002, .step_per_sequence = 0.0});
  add("honest", priced(1.0), {.prefill = 1000, .step = 0.02, .step_per_sequence = 0.0});
  EXPECT_EQ(pick(), "boaster");
  for (int i = 0; i < 20; ++i) {
    NodeWork work = work_of({.prefill = 400, .step = 0.05}, 200, 50, 0);
    work.node = "boaster";
    picker_.observe(WorkStage::placed, work, 0.0);
    picker_.observe(WorkStage::began, work, 0.5);
    picker_.observe(WorkStage::left, work, 1.0);
  }
  EXPECT_EQ(pick(), "honest");
  table_.beat("boaster", {.incarnation = 1, .number = 100}, Duration{2});
  EXPECT_EQ(pick(), "honest") << "a beat does not bring the claim back";
}

TEST_F(RoutePickerTest, ANodeThatSeemedTooSlowIsTriedAgainWithOneStream) {
  const NodeSpeed claim{.prefill = 1000, .step = 0.02, .step_per_sequence = 0.0};
  add("cheap", priced(0.1), claim);
  add("dear", priced(5.0), claim);
  const ServiceWish wish{.ttft_slo = 2.0, .tpot_slo = 0.05};
  const auto work_at = [&](double now, double off) {
    NodeWork work = work_of(claim, 500, 50, 0, off);
    const Duration later = time_of(now) - work.placed;
    work.node = "cheap";
    work.ttft_slo = 2.0;
    work.tpot_slo = 0.05;
    work.placed += later;
    work.first += later;
    work.last += later;
    return work;
  };
  const auto ends = [&](NodeWork& work) {
    picker_.observe(WorkStage::began, work, std::chrono::duration<double>(work.first).count());
    picker_.observe(WorkStage::left, work, std::chrono::duration<double>(work.last).count());
  };
  EXPECT_EQ(pick(wish), "cheap");
  for (int i = 0; i < 10; ++i) {
    NodeWork slow = work_at(1.0, 4.0);
    picker_.observe(WorkStage::placed, slow, 1.0);
    ends(slow);
  }
  EXPECT_EQ(pick(wish, {}, 8.0), "dear");
  EXPECT_EQ(pick(wish, {}, 60.0), "cheap");
  NodeWork trial = work_at(60.0, 1.0);
  picker_.observe(WorkStage::placed, trial, 60.0);
  EXPECT_TRUE(trial.trial);
  EXPECT_EQ(pick(wish, {}, 60.1), "dear") << "one is enough to know";
  ends(trial);
  EXPECT_EQ(pick(wish, {}, 62.0), "cheap") << "what had made it slow has gone";
}

TEST_F(RoutePickerTest, ABeatIsOfTheStreamsThatWereThereWhenItCame) {
  const NodeSpeed speed{.prefill = 1000, .step = 0.01, .step_per_sequence = 0.01};
  add("n", priced(1.0), speed);
  EXPECT_EQ(pick(), "n");
  NodeWork work{.node = "n", .prompt_tokens = 1000, .tokens = 1, .placed = seconds(10)};
  picker_.observe(WorkStage::placed, work, 10.0);
  table_.beat("n", {.incarnation = 1, .number = 50, .running = 1, .waiting_tokens = 1000}, Duration{2});
  picker_.hear(table_, 10.0);
  work.first = work.last = seconds(11);
  picker_.observe(WorkStage::began, work, 11.0);
  picker_.observe(WorkStage::left, work, 11.0);
  const Placement placement{.model = "m", .prompt = std::vector<std::int32_t>(100, 1), .max_new_tokens = 100};
  const auto picked = picker_.pick({placement, ServiceWish{}, {}, {}}, table_, 11.1);
  ASSERT_TRUE(picked);
  EXPECT_NEAR(picked->tpot, 0.01, 1e-6) << "the sequence that the beat counted was its own";
  EXPECT_NEAR(picked->ttft, 0.11, 0.002) << "and so was the prompt";
}

TEST_F(RoutePickerTest, KnowsWhatItsOwnStreamsDoBeforeBeatsTell) {
  const NodeSpeed speed{.prefill = 1000, .step = 0.01, .step_per_sequence = 0.001};
  add("n", priced(1.0), speed);
  const Placement placement{.model = "m", .prompt = std::vector<std::int32_t>(100, 1), .max_new_tokens = 100};
  const ServiceWish wish;
  const auto ttft = [&](double now) {
    const auto picked = picker_.pick({placement, wish, {}, {}}, table_, now);
    return picked ? picked->ttft : -1.0;
  };
  const double idle = ttft(0.0);
  NodeWork first{.node = "n", .prompt_tokens = 1000, .tokens = 1, .placed = seconds(10)}, second = first;
  picker_.observe(WorkStage::placed, first, 10.0);
  picker_.observe(WorkStage::placed, second, 10.0);
  EXPECT_FALSE(first.queued);
  EXPECT_TRUE(second.queued);
  EXPECT_NEAR(ttft(10.0) - idle, 2.0, 0.02);
  EXPECT_NEAR(ttft(10.5) - idle, 1.5, 0.02) << "half of the first prompt is computed by now";
  EXPECT_NEAR(ttft(15.0) - idle, 1.0, 0.02) << "it is late; the second one waits all the same";
  picker_.observe(WorkStage::began, first, 15.0);
  EXPECT_NEAR(ttft(15.0) - idle, 1.0, 0.02);
  EXPECT_EQ(first.beside, 1.0);
  // A beat counts these two and one of another gateway's.
  table_.beat("n", {.incarnation = 1, .number = 50, .running = 3, .waiting_tokens = 1500}, Duration{2});
  EXPECT_NEAR(ttft(15.0) - idle, 1.5, 0.02);
  picker_.observe(WorkStage::left, second, 16.0);  // moved elsewhere
  picker_.observe(WorkStage::left, first, 16.0);
  EXPECT_NEAR(ttft(16.0) - idle, 0.5, 0.02) << "what others have there";
}

TEST(PrefixHistoryTest, ForgetsWhatWasNotUsedForLongest) {
  PrefixHistory history;
  std::vector<std::uint64_t> added, removed;
  const auto use = [&](std::vector<std::uint64_t> pages) { history.use(pages, 4, added, removed); };
  use({1, 2, 3});
  EXPECT_EQ(added, (std::vector<std::uint64_t>{3, 2, 1}));
  EXPECT_TRUE(removed.empty());
  use({1, 2, 4});
  EXPECT_EQ(added, std::vector<std::uint64_t>{4});
  use({1, 5});
  EXPECT_EQ(removed, std::vector<std::uint64_t>{3}) << "the end of the oldest prompt";
  use({6, 7, 8, 9, 10, 11});
  EXPECT_EQ(added, (std::vector<std::uint64_t>{9, 8, 7, 6})) << "no more than there is memory for";
  EXPECT_EQ(removed.size(), 4u);
  EXPECT_EQ(history.size(), 4u);
}

TEST_F(RoutePickerTest, SendsAPromptWhereItsBeginningIs) {
  const NodeSpeed speed{.prefill = 500, .step = 0.01, .step_per_sequence = 0.001};
  for (const char* name : {"a", "b", "c", "d"}) add(name, priced(1.0), speed);
  ServiceWish wish;
  Placement placement{.model = "m", .max_new_tokens = 10};
  for (std::int32_t i = 0; i < 400; ++i) placement.prompt.push_back(i);
  const auto pick = [&] { return *picker_.pick({placement, wish, {}, {}}, table_, 0.0); };
  const PickedNode first = pick();
  EXPECT_EQ(first.cached_tokens, 0);
  NodeWork work{.node = first.node, .prompt_tokens = 400, .pages = first.pages};
  picker_.observe(WorkStage::placed, work, 0.0);
  picker_.observe(WorkStage::began, work, 1.0);
  picker_.observe(WorkStage::left, work, 1.0);
  placement.prompt.resize(300);
  placement.prompt.resize(500, 7);  // the same beginning
  for (int i = 0; i < 20; ++i) {
    const PickedNode again = pick();
    EXPECT_EQ(again.node, first.node);
    EXPECT_EQ(again.cached_tokens, 288) << "18 pages of 16";
  }
  placement.cache_salt = "somebody else's";
  EXPECT_EQ(pick().cached_tokens, 0);
  placement.cache_salt.clear();
  table_.beat(first.node, {.incarnation = 2, .number = 1}, Duration{2});  // a new process, with nothing in its cache
  EXPECT_EQ(pick().cached_tokens, 0);
}

TEST_F(RoutePickerTest, QuarantineAndBreakersKeepNodesOut) {
  add("a", priced(0.1));
  add("b", priced(1.0));
  table_.set_terms("a", Quarantine{"it serves another model"});
  EXPECT_EQ(pick(), "b");
  table_.set_terms("a", Quarantine{});
  EXPECT_EQ(pick(), "a");
  for (int i = 0; i < 3; ++i) table_.failed("a", seconds(10));
  EXPECT_EQ(pick(), "b");
  const auto beat_all = [&](Duration now) {
    for (const char* name : {"a", "b"}) table_.beat(name, {.incarnation = 1, .number = ++beats_}, now);
    (void)table_.look(now);
  };
  beat_all(seconds(14));
  EXPECT_EQ(pick(), "b");
  beat_all(seconds(16));
  EXPECT_EQ(pick(), "a") << "it is tried again";
  table_.failed("a", seconds(16));
  beat_all(seconds(22));
  EXPECT_EQ(pick(), "b") << "and put off for twice as long";
  beat_all(seconds(27));
  EXPECT_EQ(pick(), "a");
  table_.served("a");
  table_.failed("a", seconds(28));
  EXPECT_EQ(pick(), "a") << "one fault after a success is no row of faults";
}

TEST_F(RoutePickerTest, WhatWorkCosts) {
  NodeTerms terms{.usd_per_hour = 0.36, .busy_watts = 500, .pue = 1.2};
  terms.tariff.usd_per_kwh.fill(0.3);
  const NodeSpeed speed{.prefill = 1000, .step = 0.032, .step_per_sequence = 0.002};
  add("n", terms, speed);
  EXPECT_EQ(pick(), "n");
  NodeWork work = work_of(speed, 500, 100, 0);
  work.cached_tokens = 300;
  const double busy = 0.2 + 100 * (0.032 / 16 + 0.002);
  const RoutePicker::Cost cost = picker_.cost(work);
  EXPECT_NEAR(cost.usd, busy * (0.36 + 0.5 * 1.2 * 0.3) / 3600, 1e-9);
  EXPECT_NEAR(cost.joules, busy * 600, 1e-6);
}

}  // namespace
}  // namespace millrace
