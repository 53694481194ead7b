// Single faults, and what exactly the protocol does about them.
#include <gtest/gtest.h>

#include <algorithm>

#include "cluster/subject_tree.h"
#include "sim_cloud.h"

namespace millrace::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Placement long_answer(std::int64_t tokens = 200) {
  Placement placement{.max_new_tokens = tokens};
  placement.prompt = {1, 2, 3};
  placement.sampling.seed = 11;
  return placement;  // no stop token: the answer has that many
}

struct OneStream {
  explicit OneStream(SimCloudOptions options = {.nodes = 2, .gateways = 1, .classes = 1}) : cloud(options) {
    cloud.run_for(seconds(2));
    seen = &cloud.begin_stream("gateway-0", long_answer());
    cloud.run_for(seconds(2));
    for (const std::string& name : cloud.node_names()) (cloud.runner(name).held() > 0 ? runs_on : other) = name;
  }

  [[nodiscard]] std::uint32_t life() { return cloud.node(runs_on).life(); }

  void expect_whole() const {
    EXPECT_EQ(cloud.verdict(*seen), "");
    ASSERT_TRUE(seen->done.has_value());
    EXPECT_TRUE(seen->done->identical);
    EXPECT_EQ(seen->tokens[0].size(), 200u);
  }

  SimCloud cloud;
  SeenStream* seen;
  std::string runs_on, other;
};

/// What a stranger among the nodes says to a gateway.
class Stranger {
 public:
  explicit Stranger(SimNetwork& network) : transport_(network.join("stranger")) {}
  void say(const std::string& node, const Attempt& attempt, const Say& say) {
    transport_->publish(say_subject("gateway-0", node, attempt), encode(say));
  }
  void say_bytes(const std::string& node, const Attempt& attempt, const Bytes& bytes) {
    transport_->publish(say_subject("gateway-0", node, attempt), bytes);
  }

 private:
  std::unique_ptr<Transport> transport_;
};

TEST(Streams, GoOnElsewhereWhenTheirNodeDies) {
  OneStream one;
  const std::size_t had = one.seen->tokens[0].size();
  ASSERT_GT(had, 10u);
  one.cloud.kill_node(one.runs_on);
  one.cloud.run_for(milliseconds(3500));
  EXPECT_EQ(one.cloud.runner(one.other).held(), 1u) << "noticed within 3.5 s";
  one.cloud.run_for(seconds(30));
  one.expect_whole();
  EXPECT_EQ(one.seen->done->migrations, 1);
  EXPECT_EQ(one.seen->done->node, one.other);
}

TEST(Streams, AFrozenNodeThatThawsIsFenced) {
  OneStream one;
  one.cloud.network.freeze(one.runs_on);
  one.cloud.run_for(seconds(10));
  EXPECT_GT(one.seen->tokens[0].size(), 50u) << "it went on elsewhere";
  one.cloud.network.thaw(one.runs_on);
  one.cloud.run_for(milliseconds(100));
  EXPECT_EQ(one.cloud.runner(one.runs_on).held(), 0u) << "what it says is not wanted, and it is told so";
  one.cloud.run_for(seconds(30));
  one.expect_whole();
  one.cloud.count();
  EXPECT_GT(one.cloud.gateway_counters.fenced, 0);
}

TEST(Streams, ARestartedNodeIsNotMissed) {
  OneStream one({.nodes = 1, .gateways = 1, .classes = 1});
  one.cloud.kill_node("node-0");
  one.cloud.start_node("node-0");
  one.cloud.run_for(seconds(2));
  EXPECT_EQ(one.cloud.runner("node-0").held(), 1u) << "credit for what it does not know brings the stream back";
  one.cloud.run_for(seconds(30));
  one.expect_whole();
}

TEST(Streams, ARecordThatIsLostIsAskedFor) {
  SimCloud cloud({.nodes = 2, .gateways = 1, .classes = 1});
  cloud.run_for(seconds(2));
  cloud.kill_gateway("gateway-0");
  cloud.lose_records();
  cloud.start_gateway("gateway-0");
  cloud.run_for(milliseconds(2300));  // a beat, a question, and until the gateway looks into the registry again
  for (const std::string& name : cloud.node_names()) {
    const NodeState* node = cloud.gateway("gateway-0").nodes().find(name);
    ASSERT_NE(node, nullptr);
    EXPECT_EQ(node->record.incarnation, cloud.node(name).incarnation());
    EXPECT_FALSE(node->record.models.empty());
  }
  SeenStream& seen = cloud.begin_stream("gateway-0", long_answer());
  cloud.run_for(seconds(30));
  EXPECT_EQ(cloud.verdict(seen), "");
}

TEST(Streams, TwoLivesOfANodeAreNotMixed) {
  OneStream one({.nodes = 1, .gateways = 1, .classes = 1});
  Stranger stranger(one.cloud.network);
  const std::uint64_t next = one.seen->tokens[0].size() + 1;
  const Frame frame{.seq = next, .life = one.life() + 1, .events = {TokenCame{.choice = 0, .token = 5}}};
  stranger.say("node-0", {one.seen->id, 1}, frame);
  one.cloud.run_for(seconds(60));
  one.expect_whole();
  one.cloud.count();
  EXPECT_EQ(one.cloud.gateway_counters.breaches, 0);
}

TEST(Streams, ANodeThatDrainsGivesItsStreamsAwayAtOnce) {
  OneStream one;
  one.cloud.drain_node(one.runs_on);
  one.cloud.run_for(milliseconds(10));
  EXPECT_EQ(one.cloud.node(one.runs_on).streams().count(), 0u);
  EXPECT_EQ(one.cloud.runner(one.other).held(), 1u);
  one.cloud.run_for(seconds(30));
  one.expect_whole();
}

TEST(Streams, AnOrphanStopsByItself) {
  OneStream one;
  one.cloud.kill_gateway("gateway-0");
  one.cloud.run_for(milliseconds(5200));
  const std::int64_t frames = one.cloud.node(one.runs_on).streams().counters().frames;
  EXPECT_EQ(one.cloud.runner(one.runs_on).held(), 1u) << "its gateway might come back";
  one.cloud.run_for(seconds(10));
  EXPECT_EQ(one.cloud.node(one.runs_on).streams().counters().frames, frames) << "without credit it computes nothing";
  one.cloud.run_for(seconds(5));
  EXPECT_EQ(one.cloud.runner(one.runs_on).held(), 0u);
  EXPECT_EQ(one.cloud.node(one.runs_on).streams().counters().orphaned, 1);
}

TEST(Streams, AServerThatRestartsMovesNothing) {
  OneStream one;
  one.cloud.network.stop_server();
  one.cloud.run_for(seconds(10));
  one.cloud.network.start_server();
  one.cloud.run_for(seconds(60));
  one.expect_whole();
  EXPECT_EQ(one.seen->done->migrations, 0);
}

TEST(Streams, LossAloneIsMendedWithoutMoving) {
  SimCloud cloud({.nodes = 2, .gateways = 1, .classes = 1});
  cloud.run_for(seconds(2));
  cloud.network.weather.lost = 0.05;
  cloud.network.weather.doubled = 0.05;
  cloud.network.weather.late = 0.05;
  cloud.network.weather.late_by = milliseconds(200);
  for (int i = 0; i < 10; ++i) cloud.begin_stream("gateway-0", long_answer());
  cloud.run_for(seconds(40));
  for (const auto& seen : cloud.seen()) {
    EXPECT_EQ(cloud.verdict(*seen), "");
    ASSERT_TRUE(seen->done.has_value());
    EXPECT_EQ(seen->done->migrations, 0);
  }
  cloud.count();
  EXPECT_GT(cloud.node_counters.resent, 10);
  EXPECT_GT(cloud.gateway_counters.doubled, 10);
}

TEST(Streams, ASlowReaderHoldsItsNodeBackAndNobodyElse) {
  OneStream one;
  std::size_t came = 0;
  const StreamId id = one.cloud.gateway("gateway-0")
                          .submit(
                              [] {
                                Placement placement = long_answer(1000);
                                placement.model = "sim";
                                return placement;
                              }(),
                              kSimVocab,
                              [&](const StreamNews& news) {
                                came += std::holds_alternative<TokenCame>(news) ? 1 : 0;
                                return Demand::pause;
                              });
  one.cloud.run_for(seconds(60));
  EXPECT_LE(came, 64u);
  EXPECT_GT(came, 32u);
  EXPECT_TRUE(one.seen->done.has_value());
  one.cloud.gateway("gateway-0").resume(id);
  one.cloud.run_for(seconds(60));
  EXPECT_GT(came, 64u);
  EXPECT_LE(came, 192u);
  one.cloud.gateway("gateway-0").cancel(id);
  one.cloud.run_for(seconds(1));
  EXPECT_EQ(one.cloud.runner("node-0").held() + one.cloud.runner("node-1").held(), 0u);
}

TEST(Streams, AReaderMayTakeLongerThanNodesMay) {
  SimCloud cloud({.nodes = 1, .gateways = 1, .classes = 1});
  cloud.run_for(seconds(2));
  Placement placement = long_answer(500);
  placement.model = "sim";
  std::size_t came = 0;
  std::optional<StreamDone> done;
  bool pauses = true;
  const StreamId id = cloud.gateway("gateway-0").submit(placement, kSimVocab, [&](const StreamNews& news) {
    came += std::holds_alternative<TokenCame>(news) ? 1 : 0;
    if (const auto* end = std::get_if<StreamDone>(&news)) done = *end;
    return pauses ? Demand::pause : Demand::more;
  });
  cloud.run_for(seconds(300));
  EXPECT_LT(came, 500u);
  pauses = false;
  cloud.gateway("gateway-0").resume(id);
  cloud.run_for(seconds(60));
  EXPECT_EQ(came, 500u);
  ASSERT_TRUE(done.has_value());
  EXPECT_FALSE(done->error.has_value());
  EXPECT_EQ(done->migrations, 0);
}

TEST(Streams, WhatKillsNodesIsNotGivenToAllOfThem) {
  SimCloud cloud({.nodes = 8, .gateways = 1, .classes = 1});
  cloud.run_for(seconds(2));
  SeenStream& seen = cloud.begin_stream("gateway-0", long_answer());
  int killed = 0;
  for (int i = 0; i < 4000 && !seen.done; ++i) {
    cloud.run_for(milliseconds(10));
    for (const std::string& name : cloud.node_names()) {
      if (!cloud.has_node(name) || cloud.node(name).streams().count() == 0 || cloud.runner(name).held() == 0) continue;
      cloud.run_for(milliseconds(2));  // it has said that it takes it
      cloud.kill_node(name);
      ++killed;
    }
  }
  ASSERT_TRUE(seen.done.has_value());
  ASSERT_TRUE(seen.done->error.has_value());
  EXPECT_TRUE(seen.done->error->message.ends_with("nodes, one after the other, have not gone on with this answer"))
      << seen.done->error->message;
  EXPECT_LE(killed, 7);
}

TEST(Streams, GoOnInAnotherClassWhereThereIsNoOther) {
  OneStream one({.nodes = 2, .gateways = 1, .classes = 2});
  one.cloud.kill_node(one.runs_on);
  one.cloud.run_for(seconds(40));
  EXPECT_EQ(one.cloud.verdict(*one.seen), "");
  ASSERT_TRUE(one.seen->done.has_value());
  EXPECT_FALSE(one.seen->done->identical);
}

TEST(Streams, EndWithAnErrorWhenNobodyGoesOn) {
  OneStream one;
  one.cloud.kill_node("node-0");
  one.cloud.kill_node("node-1");
  const std::size_t had = one.seen->tokens[0].size();
  one.cloud.run_for(seconds(130));
  ASSERT_TRUE(one.seen->done.has_value());
  ASSERT_TRUE(one.seen->done->error.has_value());
  EXPECT_EQ(one.seen->done->error->message, "no node went on with this answer for 120 s");
  EXPECT_EQ(one.seen->done->error->kind, ErrorKind::unavailable);
  EXPECT_EQ(one.seen->tokens[0].size(), had);
  EXPECT_EQ(one.cloud.gateway("gateway-0").count(), 0u);
}

TEST(Streams, OfWhichNobodyIsThereEndSoon) {
  SimCloud cloud({.nodes = 0, .gateways = 1, .classes = 1});
  cloud.run_for(seconds(2));
  const SeenStream& seen = cloud.begin_stream("gateway-0", long_answer());
  cloud.run_for(seconds(13));
  EXPECT_FALSE(seen.done.has_value()) << "a node may come back";
  cloud.run_for(seconds(3));
  ASSERT_TRUE(seen.done.has_value());
  ASSERT_TRUE(seen.done->error.has_value());
  EXPECT_EQ(seen.done->error->kind, ErrorKind::unavailable);
}

TEST(Streams, AWholePlacementOfMegabytesArrives) {
  SimCloud cloud({.nodes = 1, .gateways = 1, .classes = 1});
  cloud.run_for(seconds(2));
  Placement placement = long_answer(20);
  placement.prompt.assign(1'000'000, kSimVocab - 1);
  SeenStream& seen = cloud.begin_stream("gateway-0", placement);
  cloud.run_for(seconds(10));
  EXPECT_EQ(cloud.verdict(seen), "");
}

TEST(Streams, AnEmbeddingThatMovesBeginsAgain) {
  SimCloud cloud({.nodes = 2, .gateways = 1, .classes = 2});
  cloud.run_for(seconds(2));
  Placement placement{.task = Task::embed_last, .prompt = {4, 5, 6}, .max_new_tokens = 0};
  SeenStream& seen = cloud.begin_stream("gateway-0", placement);
  cloud.run_for(milliseconds(300));
  ASSERT_FALSE(seen.done.has_value());
  std::string runs_on;
  for (const std::string& name : cloud.node_names()) {
    if (cloud.runner(name).held() > 0) runs_on = name;
  }
  cloud.kill_node(runs_on);
  cloud.run_for(seconds(10));
  EXPECT_EQ(cloud.verdict(seen), "");
  ASSERT_TRUE(seen.done.has_value());
  EXPECT_EQ(seen.done->migrations, 1);
  EXPECT_TRUE(seen.done->identical) << "it is all of one node";
  EXPECT_EQ(cloud.gateway("gateway-0").counters().tokens, 0);
}

TEST(Streams, AnEmbeddingHasAsManyNumbersAsTheModelSays) {
  const auto breaches = [](std::vector<StreamEvent> lie) {
    SimCloud cloud({.nodes = 2, .gateways = 1, .classes = 1});
    cloud.run_for(seconds(2));
    Placement placement{.task = Task::embed_mean, .prompt = {4, 5, 6}, .max_new_tokens = 0};
    SeenStream& seen = cloud.begin_stream("gateway-0", placement);
    cloud.run_for(milliseconds(10));  // accepted, with frame 0
    std::string runs_on;
    for (const std::string& name : cloud.node_names()) {
      if (cloud.runner(name).held() > 0) runs_on = name;
    }
    Stranger stranger(cloud.network);
    stranger.say(runs_on, {seen.id, 1}, Frame{.seq = 1, .life = cloud.node(runs_on).life(), .events = std::move(lie)});
    cloud.run_for(seconds(20));
    EXPECT_EQ(cloud.verdict(seen), "") << "another node has said it";
    cloud.count();
    return cloud.gateway_counters.breaches;
  };
  const EmbeddingCame part{std::vector<float>(kMaxEmbeddingPart, 1.0f)};
  EXPECT_EQ(breaches({part, part, part, part}), 1) << "too many";
  EXPECT_EQ(breaches({part, ChoiceEnd{}}), 1) << "too few";
  EXPECT_EQ(breaches({TokenCame{.choice = 0, .token = 1}}), 1) << "it is asked for no tokens";
}

TEST(Streams, WhatNobodyTookIsToldByItsKind) {
  const auto kind_of = [](ErrorKind kind, int nodes) {
    SimCloud cloud({.nodes = nodes, .gateways = 1, .classes = 1});
    cloud.run_for(seconds(2));
    SeenStream& seen = cloud.begin_stream("gateway-0", long_answer());
    Stranger stranger(cloud.network);
    for (std::uint32_t attempt = 1; attempt < 3000 && !seen.done; ++attempt) {
      // In the names of both nodes, before these have said a thing.
      for (const std::string& name : cloud.node_names()) {
        stranger.say(name, {seen.id, attempt}, Frame{.seq = 0, .life = 1, .events = {AttemptFailed{kind, "no"}}});
        if (cloud.has_node(name)) cloud.kill_node(name);
      }
      cloud.run_for(milliseconds(100));
    }
    EXPECT_TRUE(seen.done.has_value() && seen.done->error.has_value());
    return seen.done->error->kind;
  };
  EXPECT_EQ(kind_of(ErrorKind::invalid, 2), ErrorKind::invalid);
  EXPECT_EQ(kind_of(ErrorKind::busy, 2), ErrorKind::busy);
  EXPECT_EQ(kind_of(ErrorKind::unavailable, 2), ErrorKind::unavailable);
}

TEST(Streams, OnlyTheirNodeAnswersThem) {
  OneStream one;
  Stranger stranger(one.cloud.network);
  const Attempt attempt{one.seen->id, 1};
  const Frame lie{.seq = one.seen->tokens[0].size() + 1, .life = 1, .events = {TokenCame{.choice = 0, .token = 5}}};
  stranger.say(one.other, attempt, lie);                 // a node that it does not run on
  stranger.say(one.runs_on, {attempt.stream, 2}, lie);   // an attempt that there is not yet
  stranger.say("nobody", {attempt.stream + 1, 1}, lie);  // a stream that there is not
  one.cloud.run_for(milliseconds(10));
  one.cloud.count();
  EXPECT_GE(one.cloud.gateway_counters.fenced, 3);
  one.cloud.run_for(seconds(40));
  one.expect_whole();
  EXPECT_EQ(one.seen->done->migrations, 0);
}

TEST(Streams, LeaveANodeThatBreaksTheRules) {
  const auto after = [](auto say) {
    OneStream one;
    Stranger stranger(one.cloud.network);  // in the node's own name, as if it had its credentials
    say(one, stranger);
    one.cloud.run_for(seconds(60));
    one.expect_whole();
    EXPECT_EQ(one.seen->done->node, one.other);
    one.cloud.count();
    return one.cloud.gateway_counters;
  };
  const auto breach = [&](StreamEvent event) {
    return after([&](OneStream& one, Stranger& stranger) {
             // The number of the frame that comes next, by the one that is sent: a frame for each token, and one
             // before.
             const std::uint64_t next = one.seen->tokens[0].size() + 1;
             stranger.say(one.runs_on, {one.seen->id, 1},
                          Frame{.seq = next, .life = one.life(), .events = {std::move(event)}});
           })
        .breaches;
  };
  EXPECT_EQ(breach(TokenCame{.choice = 0, .token = kSimVocab}), 1);
  EXPECT_EQ(breach(TokenCame{.choice = 1, .token = 1}), 1);
  EXPECT_EQ(breach(TokenCame{.choice = 0, .token = 1, .of_prompt = true}), 1);
  EXPECT_EQ(breach(Accepted{}), 1);
  EXPECT_EQ(after([](OneStream& one, Stranger& stranger) {
              stranger.say(one.runs_on, {one.seen->id, 1}, Frame{.seq = 1'000'000, .life = one.life(), .events = {}});
            }).breaches,
            1);
  EXPECT_EQ(after([](OneStream& one, Stranger& stranger) {
              stranger.say_bytes(one.runs_on, {one.seen->id, 1}, Bytes{std::byte{1}, std::byte{99}});
            }).malformed,
            1);
}

TEST(NodeTableTest, AnOlderProcessOfAnIdentityIsIgnored) {
  NodeTable table{ClusterTiming{}};
  table.set_record({"n", 16, {{"m", "c"}}}, 7);
  EXPECT_TRUE(table.beat("n", {.incarnation = 7, .number = 1}, seconds(1)));
  EXPECT_FALSE(table.beat("n", {.incarnation = 7, .number = 1}, seconds(1))) << "twice";
  EXPECT_TRUE(table.beat("n", {.incarnation = 9, .number = 1}, seconds(2)));
  EXPECT_FALSE(table.beat("n", {.incarnation = 7, .number = 2}, seconds(9)));
  EXPECT_EQ(table.look(milliseconds(3900)).size(), 0u);
  EXPECT_EQ(table.find("n")->health, NodeHealth::ready);
  EXPECT_EQ(table.look(milliseconds(4000)).size(), 0u);
  EXPECT_EQ(table.find("n")->health, NodeHealth::suspect);
  EXPECT_EQ(table.look(milliseconds(5200)), std::vector<std::string>{"n"});
  EXPECT_EQ(table.look(milliseconds(5300)).size(), 0u) << "told once";
  table.heard("n", milliseconds(5300));
  EXPECT_EQ(table.find("n")->health, NodeHealth::dead) << "what was under way for long proves nothing";
}

TEST(SubjectTreeTest, MatchesAsTheServerDoes) {
  SubjectTree<int> tree;
  tree.add("a.b.c", 1);
  tree.add("a.*.c", 2);
  tree.add("a.>", 3);
  tree.add(">", 4);
  tree.add("a.b", 5);
  const auto matched = [&](std::string_view subject) {
    std::vector<int> values;
    tree.match(subject, [&](int value) { values.push_back(value); });
    std::ranges::sort(values);
    return values;
  };
  EXPECT_EQ(matched("a.b.c"), (std::vector{1, 2, 3, 4}));
  EXPECT_EQ(matched("a.x.c"), (std::vector{2, 3, 4}));
  EXPECT_EQ(matched("a.b"), (std::vector{3, 4, 5}));
  EXPECT_EQ(matched("a"), (std::vector{4}));
  tree.remove_if([](int value) { return value != 2; });
  EXPECT_EQ(matched("a.b.c"), (std::vector{2}));
}

}  // namespace
}  // namespace millrace::test
