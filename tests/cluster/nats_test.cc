// The transport and the registry over a real NATS server, and streams over both.
#include <gtest/gtest.h>
#include <nats/nats.h>

#include <algorithm>
#include <map>
#include <optional>

#include "cluster/nats_bucket_reader.h"
#include "nats_fixture.h"

namespace millrace::test {
namespace {

TEST_F(Nats, CarriesMessagesInOrder) {
  const auto one = connect("one"), other = connect("other");
  std::vector<std::size_t> sizes;
  std::vector<std::string> subjects;
  other->subscribe("mr.put.other.*", [&](std::string_view subject, std::span<const std::byte> message) {
    subjects.emplace_back(subject);
    sizes.push_back(message.size());
  });
  EXPECT_TRUE(run_until([&] { return other->connected(); }));
  // The subscription has reached the server once something comes.
  EXPECT_TRUE(run_until([&] {
    one->publish("mr.put.other.one", {});
    return !sizes.empty();
  }));
  sizes.clear();
  subjects.clear();
  run_until([] { return false; }, milliseconds(100));
  sizes.clear();
  subjects.clear();
  const Bytes large(kMaxMessage, std::byte{3});
  for (std::size_t size = 1; size <= 100; ++size) one->publish("mr.put.other.one", std::span(large).first(size));
  one->publish("mr.put.other.one", large);
  one->publish("mr.put.nobody.one", large);
  EXPECT_TRUE(run_until([&] { return sizes.size() == 101; }));
  for (std::size_t i = 0; i < 100; ++i) EXPECT_EQ(sizes[i], i + 1);
  EXPECT_EQ(sizes.back(), kMaxMessage);
  EXPECT_EQ(subjects.front(), "mr.put.other.one");
}

TEST_F(Nats, FindsItsServerAgain) {
  const auto one = connect("one"), other = connect("other");
  int came = 0;
  other->subscribe("a.b", [&](std::string_view, std::span<const std::byte>) { ++came; });
  const auto speaks = [&] {
    one->publish("a.b", {});
    return came > 0;
  };
  EXPECT_TRUE(run_until(speaks));
  server_->stop();
  EXPECT_TRUE(run_until([&] { return !one->connected() && !other->connected(); }));
  came = 0;
  server_->start();
  EXPECT_TRUE(run_until(speaks));
  EXPECT_TRUE(run_until([&] { return one->connected() && other->connected(); }));
  run_until([] { return false; }, milliseconds(50));  // until the last message is told
  ASSERT_GE(messages_.size(), 2u);
  EXPECT_EQ(messages_.front(), "the connection to NATS is lost; it is being looked for");
  EXPECT_EQ(messages_.back(), "connected to NATS");
}

TEST_F(Nats, AServerThatComesLaterIsFound) {
  server_->stop();
  const auto one = connect("one");
  EXPECT_FALSE(one->connected());
  run_until([] { return false; }, milliseconds(300));
  server_->start();
  EXPECT_TRUE(run_until([&] { return one->connected(); }));
}

TEST_F(Nats, KeepsRecords) {
  const auto one = connect("one"), other = connect("other");
  NatsRegistry writer(*one, loop_, [](const std::string&) {}),
      reader(
          *other, loop_, [](const std::string&) {}, RegistryRole::gateway);
  std::vector<std::pair<NodeRecord, std::uint64_t>> seen;
  reader.watch([&](const std::string&, const NodeRecord* record, std::uint64_t incarnation) {
    if (record != nullptr) seen.emplace_back(*record, incarnation);
  });
  const auto announce = [&](NatsRegistry& registry, const std::string& numeric_class) {
    std::uint64_t incarnation = 0;
    registry.announce({"one", 16, {{"m", numeric_class}}},
                      [&](const Result<std::uint64_t>& own) { incarnation = own.ok() ? *own : 0; });
    return incarnation;
  };
  EXPECT_TRUE(run_until([&] {
    announce(writer, "c1");
    return !seen.empty();
  })) << "once there is a bucket";
  run_until([] { return false; }, milliseconds(100));
  seen.clear();
  const std::uint64_t first = announce(writer, "c2");
  EXPECT_TRUE(run_until([&] { return seen.size() == 1; }));
  EXPECT_GT(first, 0u);
  EXPECT_EQ(seen[0].second, first);
  EXPECT_EQ(seen[0].first.models.front().numeric_class, "c2");
  NatsRegistry restarted(*one, loop_, [](const std::string&) {});
  const std::uint64_t second = announce(restarted, "c3");
  EXPECT_TRUE(run_until([&] { return seen.size() == 2; }));
  EXPECT_GT(second, first);
  EXPECT_EQ(seen[1].second, second);
  // Who comes later finds the last one.
  NatsRegistry later(*other, loop_, [](const std::string&) {});
  std::vector<std::uint64_t> found;
  later.watch([&](const std::string&, const NodeRecord*, std::uint64_t incarnation) { found.push_back(incarnation); });
  EXPECT_TRUE(run_until([&] { return !found.empty(); }));
  EXPECT_EQ(found, std::vector{second});
}

// The server keeps no reader of a bucket across its restarts: whoever reads must notice, and ask anew.
TEST_F(Nats, ARecordThatComesAfterARestartIsSeen) {
  const auto one = connect("one"), other = connect("other");
  NatsRegistry writer(*one, loop_, [](const std::string&) {}),
      reader(
          *other, loop_, [](const std::string&) {}, RegistryRole::gateway);
  std::vector<std::string> seen;
  reader.watch([&](const std::string& node, const NodeRecord*, std::uint64_t) { seen.push_back(node); });
  const auto is_seen = [&](const char* node) {
    return run_until(
        [&] {
          writer.announce({node, 16, {}}, [](const Result<std::uint64_t>&) {});
          return std::ranges::count(seen, node) > 0;
        },
        seconds(30));
  };
  EXPECT_TRUE(is_seen("before"));
  server_->stop();
  server_->start();
  EXPECT_TRUE(is_seen("after"));
  // … and one that has lost its files gets the bucket anew.
  server_->stop();
  server_->lose_files();
  server_->start();
  EXPECT_TRUE(is_seen("anew"));
}

// Nobody tells a node that its record has got lost, so gateways ask for it.
TEST_F(Nats, ANodeThatWasThereFirstIsAskedForItsRecord) {
  LiveNode node(connect("node"), loop_, "node");
  run_until([] { return false; }, milliseconds(1500));  // it announces itself to a bucket that is not there
  LiveGateway gateway(connect("gateway"), loop_);
  const Instant began = loop_.now();
  EXPECT_TRUE(run_until([&] {
    const NodeState* state = gateway.streams.nodes().find("node");
    return state != nullptr && state->usable() && !state->record.models.empty();
  }));
  EXPECT_LT(loop_.now() - began, seconds(5));
}

TEST_F(Nats, AStreamOutlivesItsNode) {
  server_->make_bucket("mr_nodes");
  std::optional<LiveNode> first(std::in_place, connect("first"), loop_, "first");
  LiveGateway gateway(connect("gateway"), loop_);
  std::vector<std::int32_t> tokens;
  std::optional<StreamDone> done;
  const Placement asked = work(300);
  gateway.streams.submit(asked, kSimVocab, [&](const StreamNews& news) {
    if (const auto* came = std::get_if<TokenCame>(&news)) tokens.push_back(came->token);
    if (const auto* end = std::get_if<StreamDone>(&news)) done = *end;
    return Demand::more;
  });
  EXPECT_TRUE(run_until([&] { return tokens.size() > 50; }));
  LiveNode second(connect("second"), loop_, "second");
  EXPECT_TRUE(run_until([&] { return gateway.streams.nodes().find("second") != nullptr; }));
  first.reset();
  EXPECT_TRUE(run_until([&] { return done.has_value(); }, seconds(20)));
  EXPECT_EQ(tokens, sim_answer("c", asked, 0));
  EXPECT_EQ(done->migrations, 1);
  EXPECT_EQ(done->node, "second");
  EXPECT_TRUE(done->identical);
}

TEST_F(Nats, AServerThatRestartsMovesNothing) {
  server_->make_bucket("mr_nodes");
  LiveNode node(connect("node"), loop_, "node");
  LiveGateway gateway(connect("gateway"), loop_);
  std::vector<std::int32_t> tokens;
  std::optional<StreamDone> done;
  const Placement asked = work(400);
  gateway.streams.submit(asked, kSimVocab, [&](const StreamNews& news) {
    if (const auto* came = std::get_if<TokenCame>(&news)) tokens.push_back(came->token);
    if (const auto* end = std::get_if<StreamDone>(&news)) done = *end;
    return Demand::more;
  });
  EXPECT_TRUE(run_until([&] { return tokens.size() > 50; }));
  server_->stop();
  run_until([] { return false; }, seconds(1));
  server_->start();
  EXPECT_TRUE(run_until([&] { return done.has_value(); }, seconds(30)));
  EXPECT_EQ(tokens, sim_answer("c", asked, 0));
  EXPECT_EQ(done->migrations, 0);
}

/// With the credentials that deploy/issue_credentials makes: what an identity may not, does not happen, and it is told.
class Rights : public Nats {
 protected:
  void SetUp() override {
    if (!NatsServer::available()) GTEST_SKIP() << "this machine has no nats-server (Debian: apt install nats-server)";
    server_.emplace("--gateway gate --node one two --operator owner --observer eye");
  }

  bool was_denied(const std::string& what) {
    return run_until([&] {
      return std::ranges::any_of(messages_, [&](const std::string& m) { return m.find(what) != std::string::npos; });
    });
  }
};

TEST_F(Rights, ANodeSpeaksForItselfAlone) {
  const auto gate = connect("gate"), one = connect("one"), two = connect("two");
  std::vector<std::string> heard;
  const auto hear = [&](std::string_view subject, std::span<const std::byte>) { heard.emplace_back(subject); };
  gate->subscribe("mr.beat.*", hear);
  gate->subscribe("mr.say.gate.>", hear);
  EXPECT_TRUE(run_until([&] {
    two->publish(beat_subject("two"), {});
    return !heard.empty();
  }));
  run_until([] { return false; }, milliseconds(100));
  heard.clear();
  // In another's name; to a gateway's nodes; what only a server or an operator may.
  const std::string lies[] = {beat_subject("two"),
                              kept_subject("two"),
                              say_subject("gate", "two", {1, 1}),
                              put_subject("two", "gate"),
                              "$KV.mr_nodes.two",
                              "$KV.mr_operator.one",
                              "$KV.mr_operator.two.quarantine",
                              "$JS.API.STREAM.DELETE.KV_mr_nodes",
                              "$JS.API.STREAM.PURGE.KV_mr_nodes",
                              "$JS.API.DIRECT.GET.KV_mr_nodes.$KV.mr_nodes.two",
                              "$SYS.REQ.SERVER.PING",
                              "_INBOX_two.x"};
  for (const std::string& subject : lies) {
    one->publish(subject, {});
    EXPECT_TRUE(was_denied(subject)) << subject;
  }
  one->publish(say_subject("gate", "one", {1, 1}), {});
  one->publish(beat_subject("one"), {});
  EXPECT_TRUE(run_until([&] { return heard.size() >= 2; }));
  std::ranges::sort(heard);
  EXPECT_EQ(heard, (std::vector{beat_subject("one"), say_subject("gate", "one", {1, 1})}));
}

TEST_F(Rights, ANodeHearsWhatIsSaidToItAlone) {
  const auto gate = connect("gate"), one = connect("one");
  int own = 0, others = 0;
  one->subscribe("mr.put.one.*", [&](std::string_view, std::span<const std::byte>) { ++own; });
  for (const char* pattern :
       {"mr.put.two.*", "mr.put.>", "mr.say.>", "mr.beat.*", "_INBOX_two.>", "_INBOX_gate.>", "$KV.>", ">"}) {
    one->subscribe(pattern, [&](std::string_view, std::span<const std::byte>) { ++others; });
    EXPECT_TRUE(was_denied(pattern)) << pattern;
  }
  EXPECT_TRUE(run_until([&] {
    gate->publish(put_subject("two", "gate"), {});
    gate->publish(put_subject("one", "gate"), {});
    return own > 0;
  }));
  run_until([] { return false; }, milliseconds(200));
  EXPECT_EQ(others, 0);
}

TEST_F(Rights, ANodeWritesItsOwnRecordAlone) {
  const auto gate = connect("gate"), one = connect("one");
  NatsRegistry reader(
      *gate, loop_, [](const std::string&) {}, RegistryRole::gateway);
  NatsRegistry writer(*one, loop_, [](const std::string&) {});
  std::vector<std::string> seen;
  reader.watch([&](const std::string& node, const NodeRecord*, std::uint64_t) { seen.push_back(node); });
  EXPECT_TRUE(run_until([&] {
    writer.announce({"one", 16, {}}, [](const Result<std::uint64_t>&) {});
    return !seen.empty();
  })) << "once the gateway has made the bucket";
  writer.announce({"two", 16, {}}, [](const Result<std::uint64_t>&) {});
  EXPECT_TRUE(was_denied("$KV.mr_nodes.two"));
  run_until([] { return false; }, milliseconds(200));
  EXPECT_EQ(std::ranges::count(seen, "two"), 0);
}

// A message for its own key that asks the server to roll up the whole bucket would leave its record alone there.
TEST_F(Rights, ANodeCanNotClearTheRecordsOfOthers) {
  const auto gate = connect("gate"), one = connect("one"), two = connect("two");
  NatsRegistry reader(
      *gate, loop_, [](const std::string&) {}, RegistryRole::gateway),
      of_one(*one, loop_, [](const std::string&) {}), of_two(*two, loop_, [](const std::string&) {});
  std::vector<std::string> known;
  reader.watch([&](const std::string& node, const NodeRecord*, std::uint64_t) { known.push_back(node); });
  for (const char* node : {"two", "one"}) {
    EXPECT_TRUE(run_until([&] {
      (node == std::string_view("one") ? of_one : of_two).announce({node, 16, {}}, [](const Result<std::uint64_t>&) {});
      return std::ranges::count(known, node) > 0;
    }));
  }
  for (const char* what : {"all", "sub"}) {
    natsMsg* message = nullptr;
    ASSERT_EQ(natsMsg_Create(&message, "$KV.mr_nodes.one", nullptr, "{}", 2), NATS_OK);
    ASSERT_EQ(natsMsgHeader_Set(message, "Nats-Rollup", what), NATS_OK);
    EXPECT_EQ(natsConnection_PublishMsg(one->connection(), message), NATS_OK);
    natsMsg_Destroy(message);
  }
  run_until([] { return false; }, milliseconds(200));
  // A gateway that comes now still finds both.
  const auto late = connect("gate");
  NatsRegistry later(*late, loop_, [](const std::string&) {});
  std::vector<std::string> seen;
  later.watch([&](const std::string& node, const NodeRecord*, std::uint64_t) { seen.push_back(node); });
  EXPECT_TRUE(run_until([&] { return std::ranges::count(seen, "two") == 1; }));
}

TEST_F(Rights, OperatorsSetTermsAndGatewaysQuarantine) {
  const auto gate = connect("gate"), owner = connect("owner");
  const auto quiet = [](const std::string&) {};
  NatsRegistry registry(*gate, loop_, quiet, RegistryRole::gateway);
  std::map<std::string, NodeTerms> terms;
  std::map<std::string, std::string> quarantined;
  registry.watch_terms([&](const std::string& node, const TermsNews& news) {
    if (const auto* set = std::get_if<NodeTerms>(&news)) terms[node] = *set;
    if (const auto* why = std::get_if<Quarantine>(&news)) quarantined[node] = why->reason;
  });
  NatsBucket bucket(*owner, loop_, {.name = kOperatorBucket, .makes = true}, quiet);
  const auto put = [&](NatsBucket& into, const std::string& key, const std::string& value) {
    std::optional<bool> written;
    into.put(key, value, [&](const Result<std::uint64_t>& result) { written = result.ok(); });
    run_until([&] { return written.has_value(); }, seconds(10));
    return written.value_or(false);
  };
  EXPECT_TRUE(put(bucket, "one", R"({"usd_per_hour": 0.5, "data_class": "trusted"})"));
  EXPECT_TRUE(run_until([&] { return terms.contains("one"); }));
  EXPECT_TRUE(terms["one"].trusted);
  registry.quarantine("one", "it makes things up");
  EXPECT_TRUE(run_until([&] { return quarantined["one"] == "it makes things up"; }));
  // What a gateway may not: terms.
  NatsBucket of_gateway(*gate, loop_, {.name = kOperatorBucket}, quiet);
  EXPECT_FALSE(put(of_gateway, "one", R"({"usd_per_hour": 0})"));
  EXPECT_TRUE(was_denied("$KV.mr_operator.one"));
  // An operator lets it in again.
  std::optional<bool> removed;
  bucket.remove(quarantine_key("one"), [&](const Result<std::uint64_t>& result) { removed = result.ok(); });
  EXPECT_TRUE(run_until([&] { return removed.has_value() && quarantined["one"].empty(); }));
  EXPECT_EQ(terms["one"].usd_per_hour, 0.5);
}

TEST_F(Rights, AnObserverReadsBeatsAndRecordsAlone) {
  const auto gate = connect("gate"), one = connect("one"), eye = connect("eye");
  NatsRegistry of_gate(
      *gate, loop_, [](const std::string&) {}, RegistryRole::gateway),
      of_one(*one, loop_, [](const std::string&) {});
  of_gate.watch([](const std::string&, const NodeRecord*, std::uint64_t) {});
  std::vector<std::string> records, terms, heard;
  const NatsBucketReader of_eye(
      *eye, loop_, "mr_nodes",
      [&](const std::string& node, std::optional<std::string_view> value, std::uint64_t) {
        records.push_back(node + (value && parse_record(*value).ok() ? "" : " is no record"));
      },
      [](const std::string&) {}, milliseconds(50));
  const NatsBucketReader of_terms(
      *eye, loop_, kOperatorBucket,
      [&](const std::string& key, std::optional<std::string_view> value, std::uint64_t) {
        terms.push_back(key + " " + std::string(value.value_or("")));
      },
      [](const std::string&) {}, milliseconds(50));
  of_gate.quarantine("one", "it lies");
  const auto hear = [&](std::string_view subject, std::span<const std::byte>) { heard.emplace_back(subject); };
  for (const std::string& pattern : {beat_subject("*"), gate_subject("*")}) eye->subscribe(pattern, hear);
  EXPECT_TRUE(run_until([&] {
    of_one.announce({"one", 16, {}}, [](const Result<std::uint64_t>&) {});
    run_until([] { return false; }, milliseconds(100));
    one->publish(beat_subject("one"), {});
    gate->publish(gate_subject("gate"), {});
    return !records.empty() && !terms.empty() && std::ranges::count(heard, beat_subject("one")) > 0 &&
           std::ranges::count(heard, gate_subject("gate")) > 0;
  }));
  EXPECT_EQ(records.front(), "one");
  EXPECT_EQ(terms.front(), "one.quarantine it lies");
  messages_.clear();
  for (const char* pattern : {"mr.put.>", "mr.say.>", "_INBOX_one.>", "_INBOX_gate.>", "$KV.>", "$JS.API.>", ">"}) {
    eye->subscribe(pattern, [](std::string_view, std::span<const std::byte>) {});
    EXPECT_TRUE(was_denied(pattern)) << pattern;
  }
  const std::string lies[] = {beat_subject("eye"),
                              beat_subject("one"),
                              gate_subject("gate"),
                              put_subject("one", "eye"),
                              say_subject("gate", "eye", {1, 1}),
                              "$KV.mr_nodes.one",
                              "$KV.mr_nodes.eye",
                              "$JS.API.STREAM.CREATE.KV_mr_nodes",
                              "$JS.API.STREAM.DELETE.KV_mr_nodes",
                              "$JS.API.CONSUMER.CREATE.KV_mr_nodes",
                              "$KV.mr_operator.one",
                              "$KV.mr_operator.one.quarantine",
                              "$JS.API.CONSUMER.CREATE.KV_mr_operator",
                              "$JS.API.STREAM.MSG.GET.KV_mr_tenants",
                              "_INBOX_one.x"};
  for (const std::string& subject : lies) {
    eye->publish(subject, {});
    EXPECT_TRUE(was_denied(subject)) << subject;
  }
  // Nor does a gateway or a node speak for another gateway.
  one->publish(gate_subject("gate"), {});
  EXPECT_TRUE(was_denied(gate_subject("gate")));
  gate->publish(gate_subject("other"), {});
  EXPECT_TRUE(was_denied(gate_subject("other")));
}

TEST_F(Rights, StrangersAreNotLetIn) {
  NatsOptions options{.url = server_->url(), .name = "one"};
  const auto transport =
      NatsTransport::connect(options, loop_, [this](const std::string& message) { messages_.push_back(message); });
  ASSERT_FALSE(transport.ok());
  EXPECT_NE(transport.error().message.find("refuses one"), std::string::npos) << transport.error().message;
}

TEST(NodeRecordTest, IsCheckedWhenRead) {
  const NodeRecord record{"desk", 3, {{"m", "c", 4096}, {"n", "d"}}};
  const auto back = parse_record(record_json(record));
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->node, "desk");
  ASSERT_EQ(back->models.size(), 2u);
  EXPECT_EQ(back->models[1].numeric_class, "d");
  EXPECT_EQ(back->models[0].max_tokens, 4096);
  EXPECT_EQ(back->places, 3);
  for (const char* bad :
       {"", "[]", "{}", R"({"node": 1})", R"({"node": "a"})", R"({"node": "a", "models": [1]})",
        R"({"node": "a", "places": 1, "models": [{"name": "m"}]})", R"({"node": "a", "places": 0, "models": []})",
        R"({"node": "a", "places": 1e9, "models": []})",
        R"({"node": "a", "places": 1, "models": [{"name": "m", "numeric_class": "c",
                             "max_tokens": -1}]})"}) {
    EXPECT_FALSE(parse_record(bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace millrace::test
