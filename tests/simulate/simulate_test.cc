#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cluster/sim_network.h"
#include "simulate/report.h"
#include "simulate/simulation.h"
#include "simulate/step_node.h"

namespace millrace {
namespace {

constexpr const char* kPool = R"({"node_types": [
  {"name": "fast", "vram_gb": 80, "usd_per_hour": 2.4, "idle_w": 100, "busy_w": 700, "prefill_rel": 1, "decode_rel": 1},
  {"name": "cheap", "vram_gb": 24, "usd_per_hour": 0.3, "idle_w": 40, "busy_w": 400, "prefill_rel": 0.3,
   "decode_rel": 0.3},
  {"name": "slow", "vram_gb": 24, "usd_per_hour": 0.4, "idle_w": 40, "busy_w": 300, "prefill_rel": 0.03,
   "decode_rel": 0.08}],
 "pue": {"home": 1.0, "office": 1.1},
 "availability": {"home": {"mtbf_h": 0.2, "mttr_h": 0.05}, "office": {"mtbf_h": 60, "mttr_h": 8}}})";

std::vector<Tariff> day_and_night() {
  Tariff tariff{.name = "day-night"};
  for (std::size_t hour = 0; hour < 24; ++hour) tariff.usd_per_kwh[hour] = hour < 6 ? 0.02 : 0.2;
  return {tariff};
}

std::vector<SimNode> pool_of(std::int64_t nodes) {
  auto pool = make_pool(kPool, "pool", day_and_night(), nodes, 7);
  EXPECT_TRUE(pool.ok()) << pool.error().message;
  return std::move(*pool);
}

/// Prompts of some hundred tokens in chains of conversations, so that there is something to cache.
bench::Trace trace_of(int requests, double gap) {
  SimDice dice(3);
  bench::Trace trace;
  trace.block_tokens = 128;
  double at = 0.0;
  for (int i = 0; i < requests; ++i) {
    const auto blocks = static_cast<std::int32_t>(1 + dice.below(12));
    bench::TraceRecord record{at, blocks * 128, static_cast<std::int32_t>(1 + dice.below(200)), {}};
    const auto conversation = static_cast<std::int64_t>(dice.below(20));
    for (std::int64_t b = 0; b < blocks; ++b) record.hash_ids.push_back(conversation * 1000 + b);
    trace.records.push_back(std::move(record));
    at += gap * 2.0 * dice.uniform();
  }
  return trace;
}

SimOptions options_of(RoutePolicy policy, SimDetail detail = SimDetail::requests) {
  return {.policy = policy, .detail = detail, .seed = 5, .start = UnixSeconds(1768435200.0), .churn = false};
}

TEST(SimPoolTest, ReadsAPoolAndSaysWhatIsWrongWithOne) {
  const std::vector<SimNode> nodes = pool_of(6);
  ASSERT_EQ(nodes.size(), 6u);
  EXPECT_EQ(std::ranges::count(nodes, "cheap", &SimNode::type), 2);
  const SimNode& cheap = *std::ranges::find(nodes, "cheap", &SimNode::type);
  EXPECT_DOUBLE_EQ(cheap.speed.prefill, 6000.0);
  EXPECT_DOUBLE_EQ(cheap.speed.step, 0.007 / 0.3);
  EXPECT_EQ(cheap.kv_tokens, static_cast<std::int64_t>((24 * 0.9 - 8.5) * 1e9 / 131072));
  EXPECT_GT(cheap.mtbf_s, 0.0);
  const auto complaint = [](const std::string& from, const std::string& to) {
    std::string text = kPool;
    text.replace(text.find(from), from.size(), to);
    const auto pool = make_pool(text, "pool.json", day_and_night(), 3, 1);
    return pool.ok() ? std::string() : pool.error().message;
  };
  EXPECT_EQ(complaint("\"idle_w\": 40", "\"idle_w\": -1"),
            "pool.json: node type 1 cheap: \"idle_w\": expected a number of 0 to 10000000");
  EXPECT_EQ(complaint("\"idle_w\": 40", "\"idle_watts\": 40"),
            "pool.json: node type 1 cheap: \"idle_watts\": no such key");
  EXPECT_NE(complaint("\"vram_gb\": 80", "\"vram_gb\": 8").find("too little is left"), std::string::npos);
  EXPECT_NE(complaint("\"office\": {", "\"attic\": {").find("office"), std::string::npos);
  EXPECT_NE(complaint("\"vram_gb\": 80,", "\"vram_gb\": 80, \"tariff\": \"none\",").find("none"), std::string::npos);
  EXPECT_NE(complaint("\"node_types\"", "\"types\"").find("node_types"), std::string::npos);
  EXPECT_FALSE(make_pool("[1", "pool.json", day_and_night(), 1, 1).ok());
}

TEST(SimPoolTest, TakesMeasuredNodes) {
  const auto pool = make_pool(R"({"node_types": [{"name": "m", "usd_per_hour": 1, "idle_w": 1, "busy_w": 2,
      "prefill_tokens_s": 500, "step_s": 0.01, "step_per_sequence_s": 0.001, "places": 4, "kv_tokens": 4096,
      "site": "home", "tariff": "day-night", "share": 3}],
      "pue": {"home": 1}, "availability": {"home": {"mtbf_h": 1, "mttr_h": 1}}})",
                              "pool", day_and_night(), 2, 1);
  ASSERT_TRUE(pool.ok()) << pool.error().message;
  EXPECT_EQ(pool->at(1).places, 4);
  EXPECT_EQ(pool->at(1).context, 4096);
  EXPECT_DOUBLE_EQ(pool->at(1).speed.step_per_sequence, 0.001);
}

SimNode slow_node() {
  return {.type = "one",
          .site = "home",
          .speed = {.prefill = 1000.0, .step = 0.02, .step_per_sequence = 0.01},
          .chunk = 100.0,
          .terms = {.usd_per_hour = 3600.0}};
}

TEST(StepNodeTest, TimesAreThoseOfItsPage) {
  const SimNode node = slow_node();
  StepNode model(node, 16);
  std::vector<NodeEvent> events;
  model.start({.id = 1, .prompt = 500, .answer = 11});
  model.advance(0.59, events);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_NEAR(events[0].at, 0.5, 1e-9) << "the last part of the prompt has the first token";
  EXPECT_EQ(model.emitted(1), 5);
  // Who comes in the middle of a step waits for its end; the prompt takes two steps of 0.1 then, whatever is beside it.
  model.start({.id = 2, .prompt = 200, .answer = 1});
  events.clear();
  model.advance(2.0, events);
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[0].id, 2u);
  EXPECT_NEAR(events[0].at, 0.6 + 2 * 0.1, 1e-9);
  EXPECT_EQ(events[1].kind, NodeEvent::Kind::ended);
  EXPECT_EQ(events[2].id, 1u);
  EXPECT_NEAR(events[2].at, 0.8 + (11 - 6 - 2) * 0.02, 1e-9);
  EXPECT_TRUE(model.is_idle());
  EXPECT_NEAR(model.meter().interactive().usd, events[2].at, 1e-9) << "a dollar a second while it works";
  EXPECT_NEAR(model.meter().idle().busy_s, 2.0 - events[2].at, 1e-9);
}

TEST(StepNodeTest, WhatNobodyWantsLeavesBehindTheStepThatRuns) {
  const SimNode node = slow_node();
  StepNode model(node, 16);
  std::vector<NodeEvent> events;
  model.start({.id = 1, .prompt = 100, .answer = 50});
  model.start({.id = 2, .prompt = 100, .answer = 50});
  model.start({.id = 3, .prompt = 1000, .answer = 50});
  model.advance(0.25, events);
  EXPECT_EQ(model.emitted(1), 2);
  EXPECT_EQ(model.emitted(2), 1);
  model.cancel(1);
  model.cancel(3);
  EXPECT_EQ(model.emitted(1), 0);
  events.clear();
  model.advance(2.0, events);
  ASSERT_EQ(events.size(), 1u);
  // A token at 0.2, another with the step of 0.11 in which all three were, then 48 alone.
  EXPECT_EQ(events[0].id, 2u);
  EXPECT_NEAR(events[0].at, 0.2 + 0.11 + 48 * 0.02, 1e-9);
  EXPECT_TRUE(model.is_idle());
  EXPECT_EQ(model.load().kv_free, node.kv_tokens);
}

TEST(SimPrefixCacheTest, KeepsWhatFitsAndTellsWhatChanges) {
  SimPrefixCache cache(100, 10);
  const std::vector<std::uint64_t> a{1, 2, 3}, b{1, 2, 4}, c{5, 6, 7, 8, 9};
  EXPECT_EQ(cache.reserve(a, 20), 0);
  EXPECT_EQ(cache.used(), 50);
  EXPECT_EQ(cache.reserve(b, 20), 2) << "two blocks are shared";
  EXPECT_EQ(cache.used(), 80);
  EXPECT_FALSE(cache.reserve(c, 20).has_value()) << "nothing of those that run may go";
  cache.release(a, 20);
  EXPECT_EQ(cache.reserve(c, 0), 0) << "the third block of a makes room";
  EXPECT_EQ(cache.used(), 100);
  const SimPrefixCache::News news = cache.take_news();
  EXPECT_EQ(news.added, (std::vector<std::uint64_t>{1, 2, 4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(news.removed, (std::vector<std::uint64_t>{3}));
  cache.release(b, 20);
  cache.release(c, 0);
  EXPECT_EQ(cache.reserve(b, 10), 3);
}

TEST(SimulateTest, SameOptionsSameResult) {
  const std::vector<SimNode> nodes = pool_of(12);
  const Workload work = make_workload(trace_of(600, 0.05), {.batch_share = 0.3, .batch_deadline = 7200.0, .seed = 5});
  for (const SimDetail detail : {SimDetail::requests, SimDetail::protocol}) {
    SimOptions options = options_of(RoutePolicy::cheapest_in_slo, detail);
    options.churn = true;
    options.gateways = 2;
    const std::string once = sim_json(simulate(nodes, work, options)).dump();
    EXPECT_EQ(once, sim_json(simulate(nodes, work, options)).dump());
    options.seed = 6;
    EXPECT_NE(once, sim_json(simulate(nodes, work, options)).dump());
  }
}

TEST(SimulateTest, BothDetailsAgree) {
  const std::vector<SimNode> nodes = pool_of(9);
  const Workload work = make_workload(trace_of(600, 0.1), {.seed = 5});
  for (const RoutePolicy policy : {RoutePolicy::round_robin, RoutePolicy::cheapest_in_slo}) {
    const SimResult fine = simulate(nodes, work, options_of(policy, SimDetail::protocol));
    const SimResult coarse = simulate(nodes, work, options_of(policy));
    ASSERT_EQ(fine.interactive.done, 600);
    ASSERT_EQ(coarse.interactive.done, 600);
    // Round robin is the same, step by step, but for a message's way. Where a router goes by what it has seen, an
    // answer that goes elsewhere changes all that come after it.
    const bool is_chaotic = policy == RoutePolicy::cheapest_in_slo;
    const auto near = [&](double a, double b, double bound, const char* what) {
      EXPECT_NEAR(a / b, 1.0, is_chaotic ? bound : 0.01)
          << policy_name(policy) << ": " << what << " " << a << ", " << b;
    };
    near(coarse.interactive.ttft_s->mean, fine.interactive.ttft_s->mean, 0.15, "TTFT");
    near(coarse.interactive.tpot_s->mean, fine.interactive.tpot_s->mean, 0.05, "TPOT");
    near(coarse.interactive_work.usd, fine.interactive_work.usd, 0.10, "cost");
    near(coarse.interactive_work.energy_j, fine.interactive_work.energy_j, 0.10, "energy");
    near(coarse.billed_usd, fine.billed_usd, 0.10, "what answers are told");
  }
}

TEST(SimulateTest, AnswersMoveWhereTheirNodeMissesTheLimits) {
  // A node that takes 50 ms a token and one that takes 10: what the first one has moves to the second. That takes the
  // second one's turn, so that each request begins on the first.
  std::vector<SimNode> nodes(2, slow_node());
  nodes[0].speed.step = 0.05;
  nodes[1].speed.step = 0.01;
  bench::Trace trace;
  for (int i = 0; i < 20; ++i) trace.records.push_back({5.0 * i, 50, 100, {}});
  const Workload work = make_workload(trace, {});
  for (const SimDetail detail : {SimDetail::requests, SimDetail::protocol}) {
    SimOptions options = options_of(RoutePolicy::round_robin, detail);
    options.tpot_slo = 0.03;
    const SimResult result = simulate(nodes, work, options);
    EXPECT_EQ(result.migrations, 20);
    EXPECT_EQ(result.interactive.done, 20);
    EXPECT_EQ(result.by_type.at("one").requests, 20);
    options.tpot_slo = 0.06;
    EXPECT_EQ(simulate(nodes, work, options).migrations, 0);
  }
}

TEST(SimulateTest, NothingIsLostWhereNodesFail) {
  std::vector<SimNode> nodes = pool_of(9);
  for (SimNode& node : nodes) {
    node.mtbf_s = 60.0;
    node.mttr_s = 20.0;
  }
  const Workload work = make_workload(trace_of(1200, 0.1), {.seed = 5});
  for (const SimDetail detail : {SimDetail::requests, SimDetail::protocol}) {
    SimOptions options = options_of(RoutePolicy::cheapest_in_slo, detail);
    options.churn = true;
    const SimResult result = simulate(nodes, work, options);
    EXPECT_EQ(result.interactive.done + result.interactive.failed, 1200);
    EXPECT_LE(result.interactive.failed, 12);
    EXPECT_GT(result.node_failures, 5);
    EXPECT_GT(result.migrations, 5);
  }
}

TEST(SimulateTest, TheCheapestCostsLessAndKeepsTheSlo) {
  const std::vector<SimNode> nodes = pool_of(30);
  const Workload work = make_workload(trace_of(3000, 0.1), {.seed = 5});
  const SimResult cheapest = simulate(nodes, work, options_of(RoutePolicy::cheapest_in_slo));
  for (const RoutePolicy policy : {RoutePolicy::round_robin, RoutePolicy::least_loaded}) {
    const SimResult other = simulate(nodes, work, options_of(policy));
    EXPECT_LT(cheapest.interactive_work.usd, 0.7 * other.interactive_work.usd) << policy_name(policy);
    EXPECT_GE(cheapest.interactive.in_slo, other.interactive.in_slo) << policy_name(policy);
  }
}

TEST(SimulateTest, BatchWorkWaitsForTheNightAndIsInTime) {
  const std::vector<SimNode> nodes = pool_of(6);
  // From noon on for six hours, at a third of a request a second; the night's tariff begins at midnight.
  const Workload work =
      make_workload(trace_of(7200, 3.0), {.batch_share = 0.4, .batch_deadline = 20.0 * 3600.0, .seed = 5});
  SimOptions options = options_of(RoutePolicy::cheapest_in_slo);
  options.start = UnixSeconds(1768435200.0 + 12 * 3600.0);
  options.batch = BatchMode::at_once;
  const SimResult at_once = simulate(nodes, work, options);
  options.batch = BatchMode::deferred;
  const SimResult deferred = simulate(nodes, work, options);
  EXPECT_GT(deferred.batch.done, 2000);
  EXPECT_EQ(deferred.batch.done, deferred.batch.requests);
  EXPECT_EQ(deferred.batch.late, 0);
  EXPECT_LT(deferred.batch_work.energy_usd, 0.5 * at_once.batch_work.energy_usd);
  EXPECT_GE(deferred.interactive.in_slo, at_once.interactive.in_slo);
  EXPECT_EQ(deferred.interactive.done, deferred.interactive.requests);
}

}  // namespace
}  // namespace millrace
