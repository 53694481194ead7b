// Tenants' records and keys, and limits of requests and tokens on a virtual clock.
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "cluster/sim_clock.h"
#include "cluster/sim_network.h"
#include "cluster/subjects.h"
#include "tenants/gateway_peers.h"
#include "tenants/rate_limit.h"
#include "tenants/tenant.h"
#include "tenants/tenant_table.h"

namespace millrace::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;
using Verdict = TenantLimits::Verdict;

TEST(Tenants, AreReadAsTheyWereWritten) {
  const Tenant tenant{.name = "acme",
                      .keys = {{sha256_hex("a key"), 5}},
                      .requests_per_minute = 60,
                      .tokens_per_minute = 1000,
                      .concurrent = 4,
                      .spend_usd = 12.5,
                      .spend_per = SpendPeriod::day,
                      .usd_per_million_prompt = 0.1,
                      .usd_per_million_answer = 0.4,
                      .trusted = true,
                      .regions = {"eu", "us"},
                      .labels = {"quiet"},
                      .batches = false};
  auto read = parse_tenant(tenant_json(tenant));
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(*read, tenant);
  EXPECT_EQ(*parse_tenant(tenant_json({.name = "a"})), Tenant{.name = "a"});
}

TEST(Tenants, WhatIsWrongIsSaid) {
  const auto error = [](const std::string& text) {
    const auto read = parse_tenant(text);
    return read.ok() ? std::string("none") : read.error().message;
  };
  EXPECT_EQ(error("[]"), "a tenant's record is no JSON object");
  EXPECT_EQ(error(R"({"tenant":"A","keys":[]})"), "\"tenant\": expected 1 to 32 of a-z, 0-9 and -");
  EXPECT_EQ(error(R"({"tenant":"a"})"), "\"keys\": expected at most 64 keys");
  EXPECT_EQ(error(R"({"tenant":"a","keys":[{"sha256":"12","created":1}]})"),
            "\"sha256\": expected 64 hexadecimal digits");
  EXPECT_EQ(error(R"({"tenant":"a","keys":[],"tokens":3})"), "\"tokens\": no such setting of a tenant");
  EXPECT_EQ(error(R"({"tenant":"a","keys":[],"concurrent":0})"),
            "\"concurrent\": expected a whole number of 1 to 1099511627776");
  EXPECT_EQ(error(R"({"tenant":"a","keys":[],"spend_usd":3})"),
            "\"spend_usd\" needs \"usd_per_million_prompt\" or \"usd_per_million_answer\"");
}

TEST(Tenants, AreSetByWords) {
  Tenant tenant{.name = "a"};
  for (const char* setting : {"requests_per_minute=60", "usd_per_million_answer=0.5", "spend_usd=10", "spend_per=day",
                              "data_class=trusted", "regions=eu,us", "batches=false", "labels=none"}) {
    EXPECT_TRUE(set_tenant(tenant, setting).ok()) << setting;
  }
  EXPECT_EQ(tenant.requests_per_minute, 60);
  EXPECT_EQ(tenant.spend_usd, 10.0);
  EXPECT_EQ(tenant.spend_per, SpendPeriod::day);
  EXPECT_TRUE(tenant.trusted);
  EXPECT_EQ(tenant.regions, (std::vector<std::string>{"eu", "us"}));
  EXPECT_FALSE(tenant.batches);
  EXPECT_TRUE(set_tenant(tenant, "requests_per_minute=none").ok());
  EXPECT_FALSE(tenant.requests_per_minute.has_value());
  EXPECT_EQ(set_tenant(tenant, "spend_per=year").error().message, "\"spend_per\": expected day or month");
  EXPECT_EQ(set_tenant(tenant, "tokens_per_minute=many").error().message,
            "\"tokens_per_minute\": expected a whole number of 1 to 1099511627776");
  EXPECT_EQ(set_tenant(tenant, "x").error().message, "x: expected SETTING=VALUE");
}

TEST(Tenants, KeysAreLongAndRandom) {
  std::set<std::string> keys;
  for (int i = 0; i < 100; ++i) keys.insert(new_api_key());
  EXPECT_EQ(keys.size(), 100U);
  for (const std::string& key : keys) {
    EXPECT_EQ(key.size(), 46U);
    EXPECT_TRUE(key.starts_with("mr-"));
  }
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Tenants, PeriodsAreOfUtc) {
  const Tenant by_day{.name = "a", .spend_per = SpendPeriod::day}, by_month{.name = "a"};
  constexpr std::int64_t kLast = 1'798'761'599;  // 2026-12-31T23:59:59Z
  EXPECT_EQ(spend_account(by_day, kLast), "a.2026-12-31");
  EXPECT_EQ(spend_account(by_day, kLast + 1), "a.2027-01-01");
  EXPECT_EQ(spend_account(by_month, kLast), "a.2026-12");
  EXPECT_EQ(until_next_period(SpendPeriod::day, kLast), 1);
  EXPECT_EQ(until_next_period(SpendPeriod::month, kLast), 1);
  EXPECT_EQ(until_next_period(SpendPeriod::month, kLast + 1), 31 * 86'400);
}

TEST(Tenants, PricesAreExact) {
  const Tenant tenant{.name = "a", .usd_per_million_prompt = 0.1, .usd_per_million_answer = 0.4};
  EXPECT_EQ(price_of(tenant, 1'000'000, 0), 100'000'000);
  EXPECT_EQ(price_of(tenant, 10, 1), 1400);
  const Tenant dear{.name = "a", .usd_per_million_prompt = 100, .usd_per_million_answer = 1000};
  for (int tokens = 1; tokens < 1000; ++tokens) EXPECT_EQ(price_of(dear, tokens, tokens), tokens * 1'100'000);
  EXPECT_EQ(nano_usd(1e-10), 1) << "rounded up";
  EXPECT_DOUBLE_EQ(usd(1'500'000'000), 1.5);
}

TEST(Tenants, WhereTheyMayBe) {
  const Tenant anywhere{.name = "a"}, one{.name = "a", .regions = {"eu"}}, two{.name = "a", .regions = {"eu", "us"}};
  EXPECT_EQ(*region_of(anywhere, "mars"), "mars");
  EXPECT_EQ(*region_of(one, ""), "eu");
  EXPECT_EQ(*region_of(two, ""), "");
  EXPECT_EQ(*region_of(two, "us"), "us");
  EXPECT_FALSE(region_of(two, "mars").ok());
}

TEST(TenantTable, KnowsWhoAsks) {
  TenantTable table;
  EXPECT_EQ(table.state(), TenantTable::State::unknown);
  table.complete();
  EXPECT_EQ(table.state(), TenantTable::State::none);
  Tenant acme{.name = "acme", .keys = {{sha256_hex("k1"), 0}, {sha256_hex("k2"), 0}}};
  EXPECT_TRUE(table.set("acme", tenant_json(acme)).ok());
  EXPECT_EQ(table.state(), TenantTable::State::some);
  EXPECT_EQ(table.who("Bearer k1")->name, "acme");
  EXPECT_EQ(table.who("bearer  k2 ")->name, "acme");
  for (const char* wrong : {"", "Bearer", "Bearer ", "Bearer k3", "Basic k1", "k1"}) {
    EXPECT_EQ(table.who(wrong), nullptr) << wrong;
  }
  acme.keys.erase(acme.keys.begin());
  EXPECT_TRUE(table.set("acme", tenant_json(acme)).ok());
  EXPECT_EQ(table.who("Bearer k1"), nullptr) << "revoked";
  EXPECT_EQ(table.who("Bearer k2")->name, "acme");
  EXPECT_FALSE(table.set("acme", "{}").ok());
  EXPECT_EQ(table.who("Bearer k2"), nullptr) << "a damaged record lets nobody in";
  EXPECT_TRUE(table.set("acme", std::nullopt).ok());
  EXPECT_EQ(table.state(), TenantTable::State::some) << "removing the last tenant does not open the door";
}

TEST(TokenBucket, LetsThroughItsSizeAndItsRate) {
  std::mt19937 dice(3);
  TokenBucket bucket(600.0, Instant{0});  // ten a second
  Instant now{0};
  double through = 0.0;
  while (now < minutes(30)) {
    now += milliseconds(std::uniform_int_distribution<>(0, 200)(dice));
    const double amount = std::uniform_int_distribution<>(1, 50)(dice);
    const double bound = 600.0 + 10.0 * std::chrono::duration<double>(now).count();
    if (bucket.take(amount, now)) {
      through += amount;
    } else {
      const Duration wait = bucket.wait(amount, now);
      EXPECT_GT(wait, Duration{0});
      TokenBucket later = bucket;
      EXPECT_TRUE(later.take(amount, now + wait)) << "when it said";
    }
    ASSERT_LE(through, bound + 1e-6);
  }
  EXPECT_GT(through, 600.0 + 10.0 * 30 * 60 * 0.98) << "and no less, for who asks all the time";
}

TEST(TokenBucket, MayBeInDebt) {
  TokenBucket bucket(60.0, Instant{0});
  bucket.charge(120.0, Instant{0});
  EXPECT_DOUBLE_EQ(bucket.level(Instant{0}), -60.0);
  EXPECT_FALSE(bucket.take(1.0, seconds(60)));
  EXPECT_TRUE(bucket.take(1.0, seconds(62)));
  bucket.charge(-1000.0, seconds(62));
  EXPECT_DOUBLE_EQ(bucket.level(seconds(62)), 60.0);
  bucket.set_rate(30.0, seconds(62));
  EXPECT_DOUBLE_EQ(bucket.level(seconds(62)), 30.0);
  EXPECT_DOUBLE_EQ(bucket.level(seconds(1)), 30.0) << "time does not go back";
}

TEST(TenantLimits, EachLimitIsFelt) {
  const Tenant tenant{.name = "a", .requests_per_minute = 3, .tokens_per_minute = 100, .concurrent = 2};
  TenantLimits limits(Instant{0});
  EXPECT_EQ(limits.begin(tenant, 101, 0, Instant{0}).verdict, Verdict::never);
  const auto first = limits.begin(tenant, 20, 30, Instant{0});
  EXPECT_EQ(first.verdict, Verdict::granted);
  EXPECT_EQ(first.taken_tokens, 50);
  const auto second = limits.begin(tenant, 20, 40, Instant{0});
  EXPECT_EQ(second.verdict, Verdict::too_many_tokens);
  EXPECT_NEAR(std::chrono::duration<double>(second.retry_after).count(), 6.0, 0.01);
  limits.end(first.taken_tokens, 25, Instant{0});  // it used less than it might
  EXPECT_EQ(limits.left(Instant{0}).tokens, 75);
  EXPECT_EQ(limits.begin(tenant, 1, 1, Instant{0}).verdict, Verdict::granted);
  EXPECT_EQ(limits.begin(tenant, 1, 1, Instant{0}).verdict, Verdict::granted);
  EXPECT_EQ(limits.begin(tenant, 1, 1, Instant{0}).verdict, Verdict::too_many_at_once);
  limits.end(2, 2, Instant{0});
  const auto third = limits.begin(tenant, 1, 1, Instant{0});
  EXPECT_EQ(third.verdict, Verdict::too_many_requests);
  EXPECT_NEAR(std::chrono::duration<double>(third.retry_after).count(), 20.0, 0.01);
  EXPECT_EQ(limits.begin(tenant, 1, 1, seconds(21)).verdict, Verdict::granted);
  // What may take more than a minute's tokens waits for the full bucket, and is counted as what it was.
  const auto large = limits.begin({.name = "b", .tokens_per_minute = 100}, 10, 100'000, minutes(2));
  EXPECT_EQ(large.verdict, Verdict::granted);
  limits.end(large.taken_tokens, 350, minutes(2));
  EXPECT_EQ(limits.begin({.name = "b", .tokens_per_minute = 100}, 10, 0, minutes(4)).verdict, Verdict::too_many_tokens);
}

/// Several gateways that hear each other once a second.
TEST(TenantLimits, GatewaysTogetherKeepARate) {
  constexpr int kGateways = 3;
  const Tenant tenant{.name = "a", .requests_per_minute = 120, .tokens_per_minute = 60'000};
  SimClock clock;
  SimNetwork network(clock, 5);
  std::mt19937 dice(11);
  std::vector<TenantLimits> limits(kGateways, TenantLimits(Instant{0}));
  std::vector<std::unique_ptr<Transport>> transports;
  std::vector<std::unique_ptr<GatewayPeers>> peers;
  for (std::size_t i = 0; i < kGateways; ++i) {
    const std::string name = "gate" + std::to_string(i);
    transports.push_back(network.join(name));
    peers.push_back(std::make_unique<GatewayPeers>(*transports.back(), name, new_life(1, 7)));
    peers.back()->uses = [&limits, i] { return TenantUses{{"a", limits[i].own()}}; };
    peers.back()->on_heard = [&limits, &clock, &tenant, i](const std::string& other, const TenantUses& uses,
                                                           bool first) {
      limits[i].heard(tenant, other, uses.at("a"), clock.now(), first);
    };
  }
  std::int64_t requests = 0, tokens = 0;
  const Instant end = minutes(20);
  while (clock.now() < end) {
    clock.run_until(clock.now() + milliseconds(std::uniform_int_distribution<>(10, 200)(dice)));
    const auto i = static_cast<std::size_t>(std::uniform_int_distribution<>(0, kGateways - 1)(dice));
    const auto begun = limits[i].begin(tenant, 100, 300, clock.now());
    if (begun.verdict != Verdict::granted) continue;
    ++requests;
    const std::int64_t used = std::uniform_int_distribution<>(100, 400)(dice);
    tokens += used;
    clock.at(clock.now() + milliseconds(800),
             [&limits, &clock, i, begun, used] { limits[i].end(begun.taken_tokens, used, clock.now()); });
  }
  EXPECT_LE(requests, 120 * 20 + kGateways * 120) << "the rate, and a bucket at each gateway";
  EXPECT_GE(requests, 120 * 20 * 9 / 10);
  EXPECT_LE(tokens, 60'000 * 20 + kGateways * 60'000);
}

TEST(TenantLimits, WhatOthersLetThroughIsCountedOnce) {
  const Tenant tenant{.name = "a", .requests_per_minute = 60};
  TenantLimits limits(Instant{0});
  limits.heard(tenant, "old", {50, 0, 0}, Instant{0}, true);
  EXPECT_EQ(limits.left(Instant{0}).requests, 60) << "what was before it was heard of";
  limits.heard(tenant, "new", {5, 0, 1}, Instant{0});
  EXPECT_EQ(limits.left(Instant{0}).requests, 55);
  limits.heard(tenant, "new", {5, 0, 0}, Instant{0});
  limits.heard(tenant, "old", {52, 0, 0}, Instant{0});
  EXPECT_EQ(limits.left(Instant{0}).requests, 53);
  limits.heard(tenant, "new", {1, 0, 0}, Instant{0});  // it began anew
  EXPECT_EQ(limits.left(Instant{0}).requests, 52);
  EXPECT_FALSE(limits.rest(minutes(5))) << "what others have told is still known";
  limits.heard(tenant, "new", {1, 0, 0}, minutes(5));
  EXPECT_EQ(limits.left(minutes(5)).requests, 60);
  limits.lost("new");
  limits.lost("old");
  EXPECT_TRUE(limits.rest(minutes(5)));
}

TEST(GatewayPeers, KnowWhoLives) {
  SimClock clock;
  SimNetwork network(clock, 5);
  const auto own = network.join("own"), other = network.join("other");
  const std::string first = new_life(1000, 1), second = new_life(2000, 0);
  GatewayPeers peers(*own, "own", new_life(5, 5));
  auto beats = std::make_unique<GatewayPeers>(*other, "other", first);
  clock.run_until(seconds(5));
  EXPECT_TRUE(peers.lives("other", first));
  EXPECT_FALSE(peers.lives("other", new_life(999, 9))) << "an earlier life of it";
  EXPECT_TRUE(peers.lives("other", second)) << "it may just begin";
  EXPECT_TRUE(peers.lives("own", new_life(5, 5)));
  EXPECT_TRUE(peers.lives("own", new_life(4, 5))) << "it may still be ending";
  EXPECT_TRUE(peers.lives("own", new_life(6, 5))) << "two may have one name";
  beats.reset();
  clock.run_until(seconds(7));
  EXPECT_TRUE(peers.lives("other", first));
  clock.run_until(seconds(10));
  EXPECT_FALSE(peers.lives("other", first));
  for (const std::uint64_t life : {4, 6})
    EXPECT_FALSE(peers.lives("own", new_life(life, 5))) << "nothing is heard of it";
  EXPECT_TRUE(peers.lives("own", new_life(5, 5)));
  beats = std::make_unique<GatewayPeers>(*other, "other", second);
  clock.run_until(seconds(12));
  EXPECT_TRUE(peers.lives("other", second));
  EXPECT_FALSE(peers.lives("other", first));
  EXPECT_TRUE(peers.lives("never-heard", first));
  clock.run_until(seconds(16));
  EXPECT_FALSE(peers.lives("never-heard", first));
  const std::string_view lie = R"({"life":"x","use":{}})";
  other->publish(alive_subject("other"), std::as_bytes(std::span(lie)));
  clock.run_until(seconds(17));
  EXPECT_EQ(peers.malformed(), 1);
}

TEST(GatewayPeers, MessagesAreChecked) {
  const TenantUses uses{{"a", {1, 2, 3}}, {"b", {4, 5, 6}}};
  const auto read = parse_alive(alive_json(new_life(1, 2), uses));
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->life, "00000000000100000002");
  EXPECT_EQ(read->uses.at("b").tokens, 5U);
  for (const char* wrong :
       {"", "3", R"({"life":"00000000000100000002"})", R"({"life":"00000000000100000002","use":{"a":[1,2]}})",
        R"({"life":"00000000000100000002","use":{"a":[1,2,-3]}})",
        R"({"life":"00000000000100000002","use":{"A.b":[1,2,3]}})"}) {
    EXPECT_FALSE(parse_alive(wrong).ok()) << wrong;
  }
}

}  // namespace
}  // namespace millrace::test
