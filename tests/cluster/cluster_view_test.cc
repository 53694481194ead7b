// What an observer makes of beats and records, and the tables of it.
#include "cluster/cluster_view.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "cluster/gateway_beats.h"
#include "cluster/sim_network.h"
#include "cluster/status_table.h"

namespace millrace {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

void tell_node(ClusterView& view, const std::string& node, const Beat& beat, Duration now) {
  view.take(beat_subject(node), encode(beat), now);
}
void tell_gateway(ClusterView& view, const std::string& gateway, const GateBeat& beat, Duration now) {
  view.take(gate_subject(gateway), encode(beat), now);
}

ClusterView small_cloud() {
  ClusterView view;
  const NodeRecord record{"desk", 4, {{"tiny", "cpu/avx2 f32 0123 a class with a name that is long", 4096}}};
  view.set_record("desk", &record, 7);
  const NodeRecord silent{"shed", 2, {{"tiny", "c"}}};
  view.set_record("shed", &silent, 8);
  NodeTerms terms{.usd_per_hour = 0.5, .region = "eu", .trusted = true};
  terms.tariff.usd_per_kwh.fill(0.125);
  view.set_terms("desk", terms);
  view.set_terms("shed", Quarantine{"it lies"});
  const Beat beat{.incarnation = 7, .running = 2, .waiting = 1, .kv_tokens = 1000, .kv_free = 640};
  for (int second = 1; second <= 3; ++second) {
    Beat next = beat;
    next.number = static_cast<std::uint64_t>(second);
    next.generated = 50 * second;
    tell_node(view, "desk", next, seconds(second));
  }
  tell_gateway(view, "gate", {.life = 5, .number = 1, .running = 2, .generated = 0, .ready_nodes = 1}, seconds(1));
  tell_gateway(view, "gate", {.life = 5, .number = 2, .running = 3, .generated = 80, .ready_nodes = 1}, seconds(3));
  view.look(milliseconds(3500));
  return view;
}

TEST(ClusterViewTest, ShowsNodesAndGateways) {
  const ClusterView view = small_cloud();
  const nlohmann::ordered_json json = status_json(view, milliseconds(3500), UnixSeconds(0));
  EXPECT_EQ(json.dump(),
            R"({"nodes":[{"node":"desk","state":"ready","model":"tiny","places":4,"running":2,"waiting":1,)"
            R"("kv_free":640,"kv_tokens":1000,"tokens_per_second":50.0,"beat_age_s":0.5,"usd_per_hour":0.5,)"
            R"("usd_per_kwh":0.125,"region":"eu","data_class":"trusted","quarantine":null,)"
            R"("numeric_class":"cpu/avx2 f32 0123 a class with a name that is long"},)"
            R"({"node":"shed","state":"dead","model":"tiny","places":2,"running":null,"waiting":null,"kv_free":null,)"
            R"("kv_tokens":null,"tokens_per_second":null,"beat_age_s":null,)"
            R"("usd_per_hour":0.0,"usd_per_kwh":0.0,"region":null,"data_class":"open","quarantine":"it lies",)"
            R"("numeric_class":"c"}],)"
            R"("gateways":[{"gateway":"gate","state":"ready","running":3,"waiting":0,"tokens_per_second":40.0,)"
            R"("connections":0,"ready_nodes":1,"beat_age_s":0.5}]})");
  EXPECT_EQ(
      status_text(view, milliseconds(3500), UnixSeconds(0), 0),
      "NODE  STATE  MODEL  PLACES  RUNNING  WAITING  KV FREE    OF  TOKENS/S  AGE S   $/H  $/KWH  REGION  DATA CLASS  "
      "QUARANTINE  NUMERIC CLASS\n"
      "desk  ready  tiny        4        2        1      640  1000      50.0    0.5  0.50  0.125  eu      trusted     "
      "-           cpu/avx2 f32 0123 a class with a name...\n"
      "shed  dead   tiny        2        -        -        -     -         -      -  0.00  0.000  -       open        "
      "it lies     c\n"
      "\n"
      "GATEWAY  STATE  RUNNING  WAITING  TOKENS/S  CONNECTIONS  READY NODES  AGE S\n"
      "gate     ready        3        0      40.0            0            1    0.5\n");
  const std::string narrow = status_text(view, milliseconds(3500), UnixSeconds(0), 20);
  EXPECT_TRUE(narrow.starts_with("NODE  STATE  MODEL\ndesk  ready  tiny\n")) << narrow;
  EXPECT_EQ(status_text(ClusterView{}, seconds(1), UnixSeconds(0), 0), "no nodes\n\nno gateways\n");
}

TEST(ClusterViewTest, SilenceIsSeen) {
  ClusterView view = small_cloud();
  view.look(milliseconds(5100));
  EXPECT_EQ(view.nodes().find("desk")->health, NodeHealth::suspect);
  EXPECT_EQ(view.gateways().at("gate").health, NodeHealth::suspect);
  view.look(milliseconds(6300));
  EXPECT_EQ(view.nodes().find("desk")->health, NodeHealth::dead);
  EXPECT_EQ(view.gateways().at("gate").health, NodeHealth::dead);
  view.look(seconds(64));
  EXPECT_TRUE(view.gateways().empty());
  EXPECT_NE(view.nodes().find("desk"), nullptr) << "it has a record";
  tell_gateway(view, "gate", {.life = 6, .number = 1, .draining = true}, seconds(65));
  view.look(seconds(68));
  EXPECT_EQ(view.gateways().at("gate").health, NodeHealth::draining);
}

TEST(ClusterViewTest, WhoBeginsAnewHasNoRateYet) {
  ClusterView view = small_cloud();
  EXPECT_EQ(view.tokens_per_second("desk"), 50.0);
  EXPECT_EQ(view.tokens_per_second("shed"), std::nullopt);
  tell_node(view, "desk", {.incarnation = 9, .number = 1, .generated = 3}, seconds(4));
  EXPECT_EQ(view.tokens_per_second("desk"), std::nullopt);
  tell_node(view, "desk", {.incarnation = 9, .number = 2, .generated = 13}, seconds(6));
  EXPECT_EQ(view.tokens_per_second("desk"), 5.0);
  tell_gateway(view, "gate", {.life = 6, .number = 1, .generated = 10}, seconds(4));
  EXPECT_EQ(view.gateways().at("gate").tokens.per_second(), std::nullopt);
}

TEST(ClusterViewTest, WhatIsNoBeatIsDropped) {
  ClusterView view = small_cloud();
  tell_gateway(view, "gate", {.life = 5, .number = 1, .running = 9}, seconds(4));  // an old one, late
  EXPECT_EQ(view.gateways().at("gate").beat.running, 3);
  view.take(gate_subject("gate"), encode(Beat{}), seconds(4));
  view.take(beat_subject("desk"), encode(GateBeat{}), seconds(4));
  view.take("mr.other.desk", encode(Beat{}), seconds(4));
  EXPECT_EQ(view.dropped(), 3);
}

TEST(ClusterViewTest, NoEscapeSequenceReachesTheTerminal) {
  ClusterView view;
  const NodeRecord record{"desk", 4, {{"\x1b[2Jgone\n", "c"}}};
  view.set_record("desk", &record, 7);
  const std::string text = status_text(view, seconds(1), UnixSeconds(0), 0);
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  EXPECT_NE(text.find("?[2Jgone?"), std::string::npos) << text;
}

TEST(GatewayBeatsTest, ComeEverySecond) {
  SimClock clock;
  SimNetwork network(clock, 1);
  const auto gateway = network.join("gate"), observer = network.join("observer");
  ClusterView view;
  observer->subscribe(gate_subject("*"), [&](std::string_view subject, std::span<const std::byte> message) {
    view.take(subject, message, clock.now());
  });
  const GatewayBeats beats(*gateway, "gate", 5, [](GateBeat& beat) { beat.running = 12; });
  clock.run_until(milliseconds(10'500));
  EXPECT_EQ(view.gateways().at("gate").beat.number, 11u);
  EXPECT_EQ(view.gateways().at("gate").beat.running, 12);
  EXPECT_EQ(view.gateways().at("gate").beat.life, 5u);
}

}  // namespace
}  // namespace millrace
