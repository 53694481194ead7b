// Tenants, ledgers and keys over a real NATS server, and who has which rights there.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <optional>

#include "cluster/nats_server.h"
#include "cluster/nats_transport.h"
#include "cluster/subjects.h"
#include "tenants/gateway_tenants.h"

namespace millrace::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class TenantRights : public testing::Test {
 protected:
  void SetUp() override {
    if (!NatsServer::available()) GTEST_SKIP() << "this machine has no nats-server (Debian: apt install nats-server)";
    server_.emplace("--gateway gate gate-b --node one --operator boss");
  }

  std::unique_ptr<NatsTransport> connect(const std::string& name) {
    auto transport = NatsTransport::connect(server_->options(name), loop_,
                                            [this](const std::string& message) { messages_.push_back(message); });
    EXPECT_TRUE(transport.ok()) << transport.error().message;
    return std::move(*transport);
  }

  bool run_until(const std::function<bool()>& holds, Duration most = seconds(10)) {
    const Instant end = loop_.now() + most;
    bool held = holds();
    std::function<void()> look = [&] {
      held = holds();
      if (held || loop_.now() >= end) {
        loop_.stop();
      } else {
        loop_.after(milliseconds(5), look);
      }
    };
    if (held) return true;
    loop_.after(milliseconds(5), look);
    loop_.run();
    return held;
  }

  bool was_denied(const std::string& what) {
    return run_until([&] {
      return std::ranges::any_of(messages_, [&](const std::string& m) { return m.find(what) != std::string::npos; });
    });
  }

  NatsBucket bucket(NatsTransport& transport, BucketOptions options) {
    return NatsBucket(transport, loop_, std::move(options), [](const std::string&) {});
  }
  Result<std::uint64_t> update(NatsBucket& bucket, const std::string& key, const std::string& value,
                               std::uint64_t revision) {
    std::optional<Result<std::uint64_t>> written;
    bucket.update(key, value, revision, [&](const Result<std::uint64_t>& result) { written = result; });
    EXPECT_TRUE(run_until([&] { return written.has_value(); }));
    return *written;
  }

  EventLoop loop_;
  std::optional<NatsServer> server_;
  std::vector<std::string> messages_;
};

TEST_F(TenantRights, OperatorsWriteTenantsAndGatewaysReadThem) {
  const auto gate = connect("gate"), boss = connect("boss");
  GatewayTenants tenants(*gate, loop_, "gate", [](const std::string&) {});
  NatsBucket of_boss = bucket(*boss, tenants_bucket(true)), of_gate = bucket(*gate, tenants_bucket(true));
  TenantTable& table = tenants.admission().tenants();
  EXPECT_TRUE(run_until([&] { return table.state() == TenantTable::State::none; }));
  const Tenant acme{.name = "acme", .keys = {{sha256_hex("k"), 1}}};
  const auto first = update(of_boss, "acme", tenant_json(acme), 0);
  ASSERT_TRUE(first.ok()) << first.error().message;
  EXPECT_TRUE(run_until([&] { return table.who("Bearer k") != nullptr; }));
  EXPECT_FALSE(update(of_gate, "acme", tenant_json({.name = "acme"}), *first).ok());
  EXPECT_TRUE(was_denied("$KV.mr_tenants.acme"));
  EXPECT_NE(table.who("Bearer k"), nullptr);
  // Two operators at once: the second is told.
  EXPECT_TRUE(update(of_boss, "acme", tenant_json({.name = "acme"}), *first).ok());
  EXPECT_EQ(update(of_boss, "acme", tenant_json(acme), *first).error().kind, ErrorKind::busy);
  EXPECT_TRUE(run_until([&] { return table.who("Bearer k") == nullptr; }));
}

TEST_F(TenantRights, GatewaysKeepLedgersAndKeys) {
  const auto gate = connect("gate"), other = connect("gate-b"), boss = connect("boss");
  NatsBucket spend = bucket(*gate, spend_bucket()), spend_b = bucket(*other, spend_bucket());
  NatsBucket once = bucket(*gate, once_bucket()), once_b = bucket(*other, once_bucket());
  NatsBucket of_boss = bucket(*boss, spend_bucket()), keys_of_boss = bucket(*boss, once_bucket());
  for (auto [mine, others] : {std::pair(&spend, &spend_b), std::pair(&once, &once_b)}) {
    const auto first = update(*mine, "key.a", "1", 0);
    ASSERT_TRUE(first.ok()) << first.error().message;
    EXPECT_EQ(update(*others, "key.a", "2", 0).error().kind, ErrorKind::busy);
    EXPECT_TRUE(update(*others, "key.a", "2", *first).ok());
    NatsKeyStore store(*mine);
    std::optional<std::string> read;
    store.get("key.a", [&](const Result<std::optional<Stored>>& stored) { read = (*stored)->value; });
    EXPECT_TRUE(run_until([&] { return read.has_value(); }));
    EXPECT_EQ(read, "2");
    std::optional<bool> absent;
    store.get("key.b", [&](const Result<std::optional<Stored>>& stored) { absent = stored.ok() && !*stored; });
    EXPECT_TRUE(run_until([&] { return absent.has_value(); }));
    EXPECT_TRUE(*absent);
  }
  // An operator sees what was spent, changes nothing of it, and has no part in keys and answers.
  NatsKeyStore seen(of_boss), hidden(keys_of_boss);
  std::optional<bool> may_see, may_not;
  seen.get("key.a", [&](const Result<std::optional<Stored>>& stored) { may_see = stored.ok() && *stored; });
  EXPECT_TRUE(run_until([&] { return may_see.has_value(); }));
  EXPECT_TRUE(*may_see);
  EXPECT_FALSE(update(of_boss, "key.a", "3", 0).ok());
  EXPECT_TRUE(was_denied("$KV.mr_spend.key.a"));
  hidden.get("key.a", [&](const Result<std::optional<Stored>>& stored) { may_not = !stored.ok(); });
  EXPECT_TRUE(run_until([&] { return may_not.has_value(); }));
  EXPECT_TRUE(*may_not);
}

TEST_F(TenantRights, NodesHaveNoPartInIt) {
  const auto gate = connect("gate"), one = connect("one");
  GatewayTenants tenants(*gate, loop_, "gate", [](const std::string&) {});
  EXPECT_TRUE(run_until([&] { return tenants.admission().tenants().state() == TenantTable::State::none; }));
  for (const char* name : {"mr_tenants", "mr_spend", "mr_once"}) {
    for (const char* call :
         {"STREAM.INFO", "STREAM.CREATE", "STREAM.DELETE", "STREAM.PURGE", "STREAM.MSG.GET", "CONSUMER.CREATE"}) {
      const std::string subject = std::string("$JS.API.") + call + ".KV_" + name;
      one->publish(subject, {});
      EXPECT_TRUE(was_denied(subject)) << subject;
    }
    const std::string key = std::string("$KV.") + name + ".acme";
    one->publish(key, {});
    EXPECT_TRUE(was_denied(key)) << key;
  }
  one->publish(alive_subject("gate"), {});
  EXPECT_TRUE(was_denied(alive_subject("gate")));
  one->subscribe("mr.alive.*", [](std::string_view, std::span<const std::byte>) { ADD_FAILURE(); });
  EXPECT_TRUE(was_denied("mr.alive.*"));
  run_until([] { return false; }, seconds(2));
}

TEST_F(TenantRights, AGatewayIsAliveInItsOwnNameAlone) {
  const auto gate = connect("gate"), other = connect("gate-b");
  int heard = 0;
  gate->subscribe("mr.alive.*", [&](std::string_view, std::span<const std::byte>) { ++heard; });
  other->publish(alive_subject("gate"), {});
  EXPECT_TRUE(was_denied(alive_subject("gate")));
  EXPECT_TRUE(run_until([&] {
    other->publish(alive_subject("gate-b"), {});
    return heard > 0;
  }));
}

}  // namespace
}  // namespace millrace::test
