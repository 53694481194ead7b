#include "cluster/router.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <map>

#include "cluster/sim_network.h"

namespace millrace {
namespace {

using test_clock = std::chrono::steady_clock;

NodeFacts node_of(double prefill, double step, double usd_per_hour) {
  return {.speed = {.prefill = prefill, .step = step, .step_per_sequence = step / 100.0},
          .price = {.usd_per_hour = usd_per_hour}};
}

RouteRequest request_of(std::int64_t prompt, double answer, std::uint64_t lot = 0) {
  return {.prompt_tokens = prompt, .answer_tokens = answer, .lot = lot};
}

TEST(RouterTest, PredictsAsItsPageSays) {
  Router router;
  router.set_node(0, {.speed = {.prefill = 1000.0, .step = 0.02, .step_per_sequence = 0.001},
                      .price = {.usd_per_hour = 1.0, .watts = 500.0, .pue = 1.2, .usd_per_kwh = 0.5},
                      .places = 4});
  const Route idle = router.pick(request_of(500, 100), 1).at(0);
  EXPECT_NEAR(idle.ttft, 0.52, 1e-6);
  EXPECT_NEAR(idle.tpot, 0.02, 1e-6);
  EXPECT_NEAR(idle.usd, (0.5 + 100 * (0.02 / 4 + 0.001)) * (1.0 + 0.5 * 1.2 * 0.5) / 3600.0, 1e-9);
  router.set_load(0, {.running = 2, .waiting_tokens = 300});
  const Route busy = router.pick(request_of(500, 100), 1).at(0);
  EXPECT_NEAR(busy.ttft, 0.82, 1e-6);
  EXPECT_NEAR(busy.tpot, 0.022, 1e-6);
  router.set_load(0, {.running = 4, .waiting = 1});  // two must end before this one runs, four at once
  EXPECT_NEAR(router.pick(request_of(500, 100), 1).at(0).ttft, 0.52 + 2.0 / 4.0 * 100 * 0.023, 1e-6);
}

TEST(RouterTest, TimesGoByWhatIsHopedAndCostsByWhatWasSeen) {
  Router router;
  const NodeSpeed seen{.prefill = 500.0, .step = 0.05, .step_per_sequence = 0.004};
  const NodeSpeed hoped{.prefill = 1000.0, .step = 0.02, .step_per_sequence = 0.001};
  router.set_node(0, {.speed = seen, .price = {.usd_per_hour = 1.0}, .places = 4});
  const double usd = router.pick(request_of(500, 100), 1).at(0).usd;
  router.set_node(0, {.speed = seen, .hoped = hoped, .price = {.usd_per_hour = 1.0}, .places = 4});
  const Route route = router.pick(request_of(500, 100), 1).at(0);
  EXPECT_NEAR(route.ttft, 0.52, 1e-6);
  EXPECT_NEAR(route.tpot, 0.02, 1e-6);
  EXPECT_EQ(route.usd, usd);
}

TEST(RouterTest, TakesTheCheapestThatKeepsWithinTheSlo) {
  Router router;
  router.set_node(0, node_of(10000, 0.01, 4.0));
  router.set_node(1, node_of(1000, 0.05, 0.2));
  RouteRequest request = request_of(1000, 100);
  EXPECT_EQ(router.pick(request, 1).at(0).node, 1u) << "without an SLO the cheapest";
  request.ttft_slo = 0.5;
  EXPECT_EQ(router.pick(request, 1).at(0).node, 0u);
  EXPECT_TRUE(router.pick(request, 1).at(0).within_slo);
  request.ttft_slo = 0.05;
  const std::vector<Route> none = router.pick(request, 2);
  EXPECT_EQ(none.at(0).node, 0u) << "of those that miss it, the one that misses it least";
  EXPECT_FALSE(none.at(0).within_slo);
}

TEST(RouterTest, FillsAsMuchOfALimitAsPredictionsAreWorth) {
  Router router;
  router.set_node(0, node_of(1000, 0.01, 1.0));
  RouteRequest request = request_of(1000, 100);
  request.ttft_slo = 1.01 / 0.85;
  request.tpot_slo = 1.0;
  EXPECT_TRUE(router.pick(request, 1).at(0).within_slo);
  for (int i = 0; i < 10; ++i) router.ttft_came(false);
  EXPECT_FALSE(router.pick(request, 1).at(0).within_slo) << "those that were to come so late came later";
  for (int i = 0; i < 4000; ++i) router.ttft_came(true);
  EXPECT_TRUE(router.pick(request, 1).at(0).within_slo);
  // Predictions that are wrong by some share, either way: one in 200 of those that are taken misses in the end.
  SimDice dice(9);
  SloRoom room;
  int taken = 0, missed = 0;
  for (int i = 0; i < 400000; ++i) {
    const double predicted = dice.uniform();
    if (predicted > room.part()) continue;
    const bool kept = predicted * (0.6 + 0.8 * dice.uniform()) <= 1.0;
    room.came(kept);
    ++taken;
    missed += kept ? 0 : 1;
  }
  EXPECT_NEAR(static_cast<double>(missed) / taken, 0.005, 0.001);
  EXPECT_NEAR(room.part(), 0.8, 0.08);
}

TEST(RouterTest, NeverANodeThatMayNot) {
  SimDice dice(3);
  Router router;
  const std::uint64_t m = *router.label("model=m"), eu = *router.label("region=eu"),
                      safe = *router.label("data=trusted");
  for (NodeIndex node = 0; node < 200; ++node) {
    NodeFacts facts = node_of(100.0 + 10000.0 * dice.uniform(), 0.001 + dice.uniform() / 10.0, dice.uniform());
    facts.labels = (dice.chance(0.7) ? m : 0) | (dice.chance(0.5) ? eu : 0) | (dice.chance(0.3) ? safe : 0);
    facts.usable = dice.chance(0.8);
    facts.context = 1000 + static_cast<std::int64_t>(dice.below(10000));
    router.set_node(node, facts);
  }
  for (int i = 0; i < 2000; ++i) {
    const std::vector<NodeIndex> avoid{static_cast<NodeIndex>(dice.below(200)),
                                       static_cast<NodeIndex>(dice.below(200))};
    RouteRequest request =
        request_of(static_cast<std::int64_t>(dice.below(9000)), 500.0 * dice.uniform(), dice.below(1u << 30));
    request.labels = m | (dice.chance(0.5) ? eu : 0) | (dice.chance(0.3) ? safe : 0);
    request.ttft_slo = dice.chance(0.5) ? dice.uniform() : request.ttft_slo;
    request.avoid = avoid;
    request.room = request.prompt_tokens + 1;
    const std::vector<Route> routes = router.pick(request, 3);
    bool missed = false;
    for (const Route& route : routes) {
      const NodeFacts& facts = router.facts(route.node);
      EXPECT_TRUE(facts.usable);
      EXPECT_EQ(facts.labels & request.labels, request.labels);
      EXPECT_LE(request.room, facts.context);
      EXPECT_EQ(std::ranges::count(avoid, route.node), 0);
      EXPECT_FALSE(missed && route.within_slo) << "those that keep within the SLO come first";
      missed = missed || !route.within_slo;
    }
    if (dice.chance(0.3) && !routes.empty()) {
      router.set_load(routes.front().node, {.running = static_cast<std::int64_t>(dice.below(30)),
                                            .waiting_tokens = static_cast<std::int64_t>(dice.below(20000))});
    }
  }
}

// Ten routers that all see the same beats, a second old, and know of their own requests alone, spread what comes; one
// that took the best by the beats alone would put everything on one node.
TEST(RouterTest, ManyRoutersWithOldNewsDoNotHerd) {
  constexpr NodeIndex kNodes = 20;
  std::vector<Router> routers(10, Router(RoutePolicy::cheapest_in_slo));
  for (Router& router : routers) {
    for (NodeIndex node = 0; node < kNodes; ++node) router.set_node(node, node_of(5000, 0.02, 1.0));
    for (NodeIndex node = 0; node < kNodes; ++node) router.set_load(node, {.running = 1});
  }
  std::map<NodeIndex, int> placed;
  std::vector<std::map<NodeIndex, std::int64_t>> own(routers.size());
  for (std::uint64_t i = 0; i < 200; ++i) {
    Router& router = routers[i % routers.size()];
    RouteRequest request = request_of(500, 100, i * 7919);
    request.ttft_slo = 2.0;
    const Route route = router.pick(request, 1).at(0);
    const std::int64_t count = ++own[i % routers.size()][route.node];
    router.set_load(route.node, {.running = 1 + count, .waiting_tokens = 500 * count});
    ++placed[route.node];
  }
  int most = 0;
  for (const auto& [node, count] : placed) most = std::max(most, count);
  EXPECT_EQ(placed.size(), kNodes);
  EXPECT_LE(most, 20) << "ten each, were they to know of each other";
}

TEST(RouterTest, FollowsWhatIsCached) {
  Router router(RoutePolicy::prefix_aware);
  for (NodeIndex node = 0; node < 50; ++node) router.set_node(node, node_of(1000, 0.02, 1.0));
  std::vector<std::int32_t> prompt(1000);
  for (std::size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<std::int32_t>(i * i % 977);
  const auto pages = PrefixIndex::pages_of("tenant", prompt);
  ASSERT_EQ(pages.size(), 62u);
  router.prefixes().add(17, pages);
  router.prefixes().add(3, std::span(pages).first(20));
  RouteRequest request = request_of(1000, 10);
  request.pages = pages;
  const std::vector<Route> routes = router.pick(request, 3);
  EXPECT_EQ(routes.at(0).node, 17u);
  EXPECT_EQ(routes.at(0).cached_tokens, 992);
  EXPECT_EQ(routes.at(1).node, 3u);
  EXPECT_GT(routes.at(1).cached_tokens, 200);
  EXPECT_LE(routes.at(1).cached_tokens, 320);
  EXPECT_EQ(routes.at(2).cached_tokens, 0);
  // Another tenant shares nothing, and what a node has dropped is not there.
  const auto foreign = PrefixIndex::pages_of("other", prompt);
  request.pages = foreign;
  EXPECT_EQ(router.pick(request, 1).at(0).cached_tokens, 0);
  router.prefixes().remove(17, std::span(pages).subspan(30));
  request.pages = pages;
  EXPECT_EQ(router.pick(request, 1).at(0).cached_tokens, 480);
  router.prefixes().remove_all(17);
  router.prefixes().remove_all(3);
  EXPECT_EQ(router.prefixes().size(), 0u);
}

TEST(RouterTest, RoundRobinTakesTurns) {
  Router router(RoutePolicy::round_robin);
  for (NodeIndex node = 0; node < 5; ++node) router.set_node(node, node_of(1000, 0.02, 1.0));
  std::map<NodeIndex, int> taken;
  for (int i = 0; i < 50; ++i) ++taken[router.pick(request_of(10, 10), 1).at(0).node];
  for (const auto& [node, count] : taken) EXPECT_EQ(count, 10) << node;
}

TEST(RouterTest, PicksAmongTenThousandNodesSoon) {
  SimDice dice(5);
  Router router;
  for (NodeIndex node = 0; node < 10000; ++node) {
    router.set_node(node, node_of(100.0 + 10000.0 * dice.uniform(), 0.001 + dice.uniform() / 10.0, dice.uniform()));
    router.set_load(node, {.running = static_cast<std::int64_t>(dice.below(20))});
  }
  std::vector<std::int32_t> prompt(4000);
  for (std::int32_t& token : prompt) token = static_cast<std::int32_t>(dice.below(50000));
  const auto pages = PrefixIndex::pages_of("", prompt);
  for (NodeIndex node = 0; node < 10000; node += 100) {
    router.prefixes().add(node, std::span(pages).first(1 + dice.below(pages.size())));
  }
  std::vector<double> microseconds;
  for (std::uint64_t i = 0; i < 300; ++i) {
    RouteRequest request = request_of(4000, 100, i);
    request.pages = pages;
    request.ttft_slo = 2.0;
    request.tpot_slo = 0.05;
    const auto began = test_clock::now();
    const std::vector<Route> routes = router.pick(request, 3);
    microseconds.push_back(std::chrono::duration<double, std::micro>(test_clock::now() - began).count());
    ASSERT_EQ(routes.size(), 3u);
    router.set_load(routes.front().node, {.running = 10, .waiting_tokens = 4000});
  }
  std::ranges::sort(microseconds);
  std::cout << "pick of 10,000 nodes: " << microseconds[150] << " us, the slowest tenth " << microseconds[270]
            << " us\n";
#ifdef NDEBUG
  EXPECT_LT(microseconds[150], 1000.0);  // the target is 100 on a quiet machine; this one may be busy
#endif
}

}  // namespace
}  // namespace millrace
