// What must not work: messages that are malformed, too large, said again or said in another's name are refused and
// counted, on the virtual clock and through a real server with the credentials that deploy/issue_credentials makes.
#include <gtest/gtest.h>
#include <nats/nats.h>

#include <algorithm>
#include <optional>
#include <set>

#include "nats_fixture.h"
#include "sim_cloud.h"

namespace millrace::test {
namespace {

/// Somebody on the simulated network, where nobody checks who says what: hears all, and says it again.
class Spy {
 public:
  struct Heard {
    std::string subject;
    Bytes message;
  };

  Spy(SimNetwork& network, std::string_view pattern) : transport_(network.join("spy")) {
    transport_->subscribe(pattern, [this](std::string_view subject, std::span<const std::byte> message) {
      if (!deaf) heard.push_back({std::string(subject), Bytes(message.begin(), message.end())});
    });
  }
  void say(std::string_view subject, std::span<const std::byte> message) { transport_->publish(subject, message); }
  void say_again() {
    deaf = true;
    for (const Heard& one : heard) say(one.subject, one.message);
  }

  std::vector<Heard> heard;
  bool deaf = false;

 private:
  std::unique_ptr<Transport> transport_;
};

Placement answer_of(std::int64_t tokens) {
  Placement placement{.model = "sim", .prompt = {1, 2, 3}, .max_new_tokens = tokens};
  placement.sampling.seed = 11;
  return placement;
}

struct SmallCloud : SimCloud {
  SmallCloud() : SimCloud({.nodes = 1, .gateways = 1, .classes = 1}) { run_for(seconds(2)); }
  const NodeStreams::Counters& node_counts() { return node("node-0").streams().counters(); }
  const GatewayStreams::Counters& gateway_counts() { return gateway("gateway-0").counters(); }
  void expect_whole(const SeenStream& seen) {
    EXPECT_EQ(verdict(seen), "");
    ASSERT_TRUE(seen.done.has_value());
    EXPECT_EQ(seen.done->migrations, 0);
  }
};

TEST(Security, WhatAGatewayHasSaidStartsNothingAgain) {
  SmallCloud cloud;
  Spy spy(cloud.network, "mr.put.node-0.gateway-0");
  SeenStream& seen = cloud.begin_stream("gateway-0", answer_of(100));
  cloud.run_for(seconds(20));
  cloud.expect_whole(seen);
  ASSERT_GT(spy.heard.size(), 2u);
  EXPECT_EQ(cloud.node_counts().placed, 1);
  const std::int64_t fenced = cloud.node_counts().fenced;
  spy.say_again();
  cloud.run_for(seconds(1));
  EXPECT_EQ(cloud.node_counts().placed, 1) << "it is remembered that this attempt has ended";
  EXPECT_GT(cloud.node_counts().fenced, fenced);
  EXPECT_EQ(cloud.runner("node-0").held(), 0u);
  // Once that is forgotten, what comes of it is not wanted.
  cloud.run_for(seconds(70));
  const std::int64_t answers = cloud.gateway_counts().fenced;
  spy.say_again();
  cloud.run_for(seconds(1));
  EXPECT_GT(cloud.gateway_counts().fenced, answers);
  EXPECT_EQ(cloud.runner("node-0").held(), 0u);
  EXPECT_EQ(cloud.node("node-0").streams().count(), 0u);
}

TEST(Security, WhatANodeHasSaidIsHeardOnce) {
  SmallCloud cloud;
  Spy frames(cloud.network, "mr.say.gateway-0.>"), beats(cloud.network, "mr.beat.*");
  SeenStream& seen = cloud.begin_stream("gateway-0", answer_of(400));
  cloud.run_for(seconds(3));
  ASSERT_FALSE(seen.done.has_value());
  ASSERT_GT(frames.heard.size(), 10u);
  ASSERT_GT(beats.heard.size(), 1u);
  frames.say_again();
  beats.say_again();
  cloud.run_for(milliseconds(100));
  EXPECT_EQ(cloud.gateway_counts().doubled, std::ssize(frames.heard));
  EXPECT_EQ(cloud.gateway_counts().fenced, std::ssize(beats.heard));
  cloud.run_for(seconds(30));
  cloud.expect_whole(seen);
  const std::int64_t fenced = cloud.gateway_counts().fenced;
  frames.say_again();
  cloud.run_for(milliseconds(100));
  EXPECT_EQ(cloud.gateway_counts().fenced, fenced + std::ssize(frames.heard));
  cloud.expect_whole(seen);
}

/// Bytes that are no message, or one that is larger than it may be.
std::vector<Bytes> nonsense(const Bytes& good) {
  std::vector<Bytes> all{{}, {std::byte{1}}, {std::byte{1}, std::byte{99}}, Bytes(kMaxMessage, std::byte{0xff})};
  all.push_back(good);
  all.back().front() = std::byte{2};  // a version that is not known
  all.push_back(good);
  all.back().push_back(std::byte{0});  // left over
  for (std::size_t length = 2; length < good.size(); ++length)
    all.emplace_back(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(length));
  Bytes large = encode(Put{PlacePart{.attempt = {1, 1}, .part = 0, .parts = 1, .bytes = Bytes(kMaxPartBytes)}});
  // The length of the part stands before its bytes; one more than is allowed, and that many bytes.
  const std::size_t at = large.size() - kMaxPartBytes - 3;
  large[at] = std::byte{static_cast<unsigned char>((large[at] | std::byte{1}))};
  large.push_back(std::byte{0});
  all.push_back(large);
  return all;
}

TEST(Security, ANodeCountsWhatIsNoMessage) {
  SmallCloud cloud;
  Spy spy(cloud.network, "nobody");
  SeenStream& seen = cloud.begin_stream("gateway-0", answer_of(200));
  cloud.run_for(seconds(1));
  const std::vector<Bytes> bad = nonsense(encode(Put{Credits{{{{seen.id, 1}, 1, 64}}}}));
  for (const Bytes& message : bad) spy.say("mr.put.node-0.gateway-0", message);
  spy.say("mr.put.node-0.NOBODY", encode(Put{CancelAttempt{{seen.id, 1}}}));
  cloud.run_for(milliseconds(10));
  EXPECT_EQ(cloud.node_counts().malformed, std::ssize(bad) + 1);
  // Well-formed, and yet not so: frames that were never sent; another gateway's word; a stream that is not here.
  const std::int64_t fenced = cloud.node_counts().fenced, unknown = cloud.node_counts().unknown;
  spy.say("mr.put.node-0.gateway-0", encode(Put{Credits{{{{seen.id, 1}, 1'000'000, 2'000'000}}}}));
  spy.say("mr.put.node-0.gateway-0", encode(Put{CancelAttempt{{seen.id, 0}}}));
  spy.say("mr.put.node-0.gateway-1", encode(Put{CancelAttempt{{seen.id, 9}}}));
  spy.say("mr.put.node-0.gateway-1", encode(Put{Credits{{{{seen.id, 1}, 0, 64}}}}));
  cloud.run_for(milliseconds(10));
  EXPECT_EQ(cloud.node_counts().fenced, fenced + 2);
  EXPECT_EQ(cloud.node_counts().unknown, unknown + 1);
  cloud.run_for(seconds(30));
  cloud.expect_whole(seen);
}

TEST(Security, APlacementThatIsTooLargeIsRefused) {
  SmallCloud cloud;
  Spy spy(cloud.network, "nobody");
  const std::uint32_t parts = kMaxPlacement / kMaxPartBytes + 2;
  for (std::uint32_t part = 0; part < parts; ++part) {
    spy.say("mr.put.node-0.gateway-0",
            encode(Put{PlacePart{.attempt = {7, 1}, .part = part, .parts = parts, .bytes = Bytes(kMaxPartBytes)}}));
  }
  cloud.run_for(seconds(1));
  EXPECT_EQ(cloud.node_counts().refused, 1);
  EXPECT_EQ(cloud.node_counts().placed, 0);
  // Whole, and nonsense.
  spy.say("mr.put.node-0.gateway-0",
          encode(Put{PlacePart{.attempt = {8, 1}, .part = 0, .parts = 1, .bytes = Bytes(100)}}));
  cloud.run_for(seconds(1));
  EXPECT_EQ(cloud.node_counts().refused, 2);
  EXPECT_EQ(cloud.node_counts().malformed, 1);
  cloud.run_for(seconds(30));
  EXPECT_EQ(cloud.node("node-0").streams().count(), 0u);
}

TEST(Security, AGatewayCountsBeatsThatAreNone) {
  SmallCloud cloud;
  Spy spy(cloud.network, "nobody");
  const std::vector<Bytes> bad = nonsense(encode(Beat{.incarnation = 1, .number = 1}));
  for (const Bytes& message : bad) spy.say("mr.beat.node-0", message);
  spy.say("mr.say.gateway-0.node-0.short", {});
  cloud.run_for(milliseconds(10));
  EXPECT_EQ(cloud.gateway_counts().malformed, std::ssize(bad) + 1);
}

// What comes in a node's name and is no message of it does not keep it alive.
TEST(Security, NonsenseIsNoSignOfLife) {
  SimCloud cloud({.nodes = 2, .gateways = 1, .classes = 1});
  cloud.run_for(seconds(2));
  SeenStream& seen = cloud.begin_stream("gateway-0", answer_of(300));
  cloud.run_for(seconds(1));
  const std::string dead = cloud.runner("node-0").held() > 0 ? "node-0" : "node-1";
  Spy spy(cloud.network, "nobody");
  cloud.kill_node(dead);
  for (int i = 0; i < 350; ++i) {
    spy.say("mr.say.gateway-0." + dead + ".0000000000000005.1", std::as_bytes(std::span("{}", 2)));
    spy.say("mr.beat." + dead, std::as_bytes(std::span("{}", 2)));
    cloud.run_for(milliseconds(10));
  }
  EXPECT_EQ(cloud.runner(dead == "node-0" ? "node-1" : "node-0").held(), 1u) << "noticed within 3.5 s";
  cloud.run_for(seconds(30));
  EXPECT_EQ(cloud.verdict(seen), "");
}

/// Two nodes and a gateway with the credentials that deploy/issue_credentials makes, and a stream that runs on one.
class Credentials : public Nats {
 protected:
  void SetUp() override {
    if (!NatsServer::available()) GTEST_SKIP() << "this machine has no nats-server (Debian: apt install nats-server)";
    server_.emplace("--gateway gate --node one two");
    gate_transport_ = connect("gate");
    registry_.emplace(
        *gate_transport_, loop_, [](const std::string&) {}, RegistryRole::gateway);
    gate_.emplace(*gate_transport_, *registry_, "gate", LiveGateway::pick, 7);
    one_.emplace(connect("one"), loop_, "one");
    two_ = connect("two");
    EXPECT_TRUE(run_until([&] {
      const NodeState* state = gate_->nodes().find("one");
      return state != nullptr && state->usable() && !state->record.models.empty();
    }));
    asked_ = work(300);
    id_ = gate_->submit(asked_, kSimVocab, [&](const StreamNews& news) {
      if (const auto* came = std::get_if<TokenCame>(&news)) tokens_.push_back(came->token);
      if (const auto* end = std::get_if<StreamDone>(&news)) done_ = *end;
      return Demand::more;
    });
    EXPECT_TRUE(run_until([&] { return tokens_.size() > 20; }));
  }
  void TearDown() override {
    one_.reset();
    gate_.reset();
    registry_.reset();
  }

  void expect_whole() {
    EXPECT_TRUE(run_until([&] { return done_.has_value(); }, seconds(30)));
    EXPECT_EQ(tokens_, sim_answer("c", asked_, 0));
    EXPECT_EQ(done_->migrations, 0);
    EXPECT_EQ(gate_->counters().breaches, 0);
  }
  bool was_denied(const std::string& what) {
    return run_until([&] {
      return std::ranges::any_of(messages_, [&](const std::string& m) { return m.find(what) != std::string::npos; });
    });
  }
  /// As a client may that asks the server for an answer, or for a trace, on a subject of its choice.
  static void publish(const std::unique_ptr<NatsTransport>& from, const std::string& subject, const char* reply,
                      const char* header = nullptr, const char* value = nullptr) {
    natsMsg* message = nullptr;
    ASSERT_EQ(natsMsg_Create(&message, subject.c_str(), reply, "{}", 2), NATS_OK);
    if (header != nullptr) {
      ASSERT_EQ(natsMsgHeader_Set(message, header, value), NATS_OK);
    }
    EXPECT_EQ(natsConnection_PublishMsg(from->connection(), message), NATS_OK);
    natsMsg_Destroy(message);
  }

  std::unique_ptr<NatsTransport> gate_transport_, two_;
  std::optional<NatsRegistry> registry_;
  std::optional<GatewayStreams> gate_;
  std::optional<LiveNode> one_;
  Placement asked_;
  StreamId id_ = 0;
  std::vector<std::int32_t> tokens_;
  std::optional<StreamDone> done_;
};

TEST_F(Credentials, ANodeCannotAnswerAStreamThatItDoesNotServe) {
  const Attempt attempt{id_, 1};
  const Bytes lie =
      encode(Say{Frame{.seq = tokens_.size() + 1, .life = 1, .events = {TokenCame{.choice = 0, .token = 5}}}});
  two_->publish(say_subject("gate", "one", attempt), lie);
  EXPECT_TRUE(was_denied(say_subject("gate", "one", attempt))) << "in the name of the one that does";
  EXPECT_EQ(gate_->counters().fenced, 0);
  two_->publish(say_subject("gate", "two", attempt), lie);
  two_->publish(say_subject("gate", "two", {id_, 2}), lie);
  EXPECT_TRUE(run_until([&] { return gate_->counters().fenced == 2; })) << "in its own";
  expect_whole();
}

TEST_F(Credentials, WhatANodeSaysAgainOrWrongIsCounted) {
  const std::unique_ptr<NatsTransport>& one = one_->transport;
  const std::string subject = say_subject("gate", "one", {id_, 1});
  const Bytes first = encode(Say{Frame{.seq = 0, .life = one_->agent.life(), .events = {Accepted{}}}});
  for (int i = 0; i < 10; ++i) one->publish(subject, first);
  EXPECT_TRUE(run_until([&] { return gate_->counters().doubled == 10; }));
  one->publish(beat_subject("one"), std::as_bytes(std::span("{}", 2)));
  one->publish(beat_subject("one"), Bytes(kMaxMessage));
  one->publish(beat_subject("one"), encode(Beat{.incarnation = 1, .number = 1}));
  EXPECT_TRUE(run_until([&] { return gate_->counters().malformed == 2 && gate_->counters().fenced == 1; }));
  // More than the server lets through is not even sent.
  const Bytes more((1 << 20) + 1);
  EXPECT_EQ(natsConnection_Publish(one->connection(), subject.c_str(), more.data(), static_cast<int>(more.size())),
            NATS_MAX_PAYLOAD);
  expect_whole();
}

TEST_F(Credentials, WhatAGatewaySaysWrongIsCounted) {
  const NodeStreams::Counters& counters = one_->agent.streams().counters();
  gate_transport_->publish(put_subject("one", "gate"), std::as_bytes(std::span("{}", 2)));
  gate_transport_->publish(put_subject("one", "gate"), Bytes(kMaxMessage));
  EXPECT_TRUE(run_until([&] { return counters.malformed == 2; }));
  gate_transport_->publish(put_subject("one", "gate"), encode(Put{Credits{{{{id_, 1}, 1'000'000, 2'000'000}}}}));
  EXPECT_TRUE(run_until([&] { return counters.fenced == 1; }));
  expect_whole();
}

// A server answers whoever publishes to JetStream on the subject that he names, in its own name and past all rights. So
// a node may publish nothing that is answered, and the bucket of records acknowledges nothing.
TEST_F(Credentials, TheServerSaysNothingForANode) {
  std::set<std::string> heard;
  gate_transport_->subscribe("mr.beat.two",
                             [&](std::string_view subject, std::span<const std::byte>) { heard.emplace(subject); });
  gate_transport_->subscribe("mr.say.gate.two.>",
                             [&](std::string_view subject, std::span<const std::byte>) { heard.emplace(subject); });
  two_->subscribe("mr.put.two.*",
                  [&](std::string_view subject, std::span<const std::byte>) { heard.emplace(subject); });
  std::vector<std::string> wrong;
  NatsRegistry late(*gate_transport_, loop_, [&](const std::string& message) { wrong.push_back(message); });
  std::set<std::string> records;
  late.watch([&](const std::string& node, const NodeRecord*, std::uint64_t) { records.insert(node); });
  EXPECT_TRUE(run_until([&] { return records.contains("one"); }));
  for (const char* subject :
       {"$JS.API.STREAM.INFO.KV_mr_nodes", "$JS.API.INFO", "$JS.API.CONSUMER.CREATE.KV_mr_nodes"}) {
    publish(one_->transport, subject, "_INBOX_one.x");
    EXPECT_TRUE(was_denied(subject)) << subject;
  }
  const std::string targets[] = {"mr.beat.two", say_subject("gate", "two", {id_, 1}), put_subject("two", "gate"),
                                 "$KV.mr_nodes.two", "$KV.mr_operator.two.quarantine"};
  for (const std::string& target : targets) {
    publish(one_->transport, "$KV.mr_nodes.one", target.c_str());
    publish(one_->transport, "$JS.API.STREAM.INFO.KV_mr_nodes", target.c_str());
    publish(one_->transport, "$JS.API.INFO", target.c_str());
    publish(one_->transport, "$KV.mr_nodes.one", nullptr, "Nats-Trace-Dest", target.c_str());
    publish(one_->transport, "mr.beat.one", nullptr, "Nats-Trace-Dest", target.c_str());
  }
  run_until([] { return false; }, milliseconds(500));
  EXPECT_EQ(heard, std::set<std::string>{});
  EXPECT_EQ(records, std::set<std::string>{"one"});
  for (const std::string& message : wrong) EXPECT_EQ(message.find("two"), std::string::npos) << message;
  const NodeState* two = gate_->nodes().find("two");
  EXPECT_TRUE(two == nullptr || (two->quarantine.empty() && two->record.models.empty()));
}

TEST_F(Credentials, ARecordStandsUnderItsOwnNodeAlone) {
  std::vector<std::string> wrong;
  NatsRegistry late(*gate_transport_, loop_, [&](const std::string& message) { wrong.push_back(message); });
  std::set<std::string> records;
  late.watch([&](const std::string& node, const NodeRecord*, std::uint64_t) { records.insert(node); });
  const std::string forged = record_json({"one", 16, {{"m", "another class"}}});
  two_->publish("$KV.mr_nodes.two", std::as_bytes(std::span(forged)));
  EXPECT_TRUE(run_until([&] {
    return std::ranges::count(wrong, "the record of one stands under the key two") > 0 && records.contains("one");
  }));
  EXPECT_FALSE(records.contains("two"));
  EXPECT_EQ(gate_->nodes().find("one")->record.models.front().numeric_class, "c");
}

}  // namespace
}  // namespace millrace::test
