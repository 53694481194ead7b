// Audits of simulated nodes on a virtual clock: who is found, who is not, and what everybody sees of it.
#include "audits/auditor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "cluster/node_agent.h"
#include "cluster/sim_network.h"
#include "cluster/sim_registry.h"
#include "toy_runner.h"

namespace millrace::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

const std::string kModel = "toy";
const std::string kClass = "cpu f32 0123456789abcdef cbf29ce484222325";
const std::string kAlike = "gpu bf16 0123456789abcdef cbf29ce484222325";
const std::string kOtherRecipe = "cpu f32 0123456789abcdef 1111111111111111";

TEST(ComputesAlikeTest, GoesByTheHashes) {
  EXPECT_TRUE(computes_alike(kClass, kClass));
  EXPECT_TRUE(computes_alike(kClass, kAlike));
  EXPECT_FALSE(computes_alike(kClass, kOtherRecipe));
  EXPECT_FALSE(computes_alike(kClass, kClass + " dummy"));
  EXPECT_TRUE(computes_alike("c", "c"));
  EXPECT_FALSE(computes_alike("c", "d")) << "of names without hashes nothing is known";
  EXPECT_FALSE(computes_alike("", "c"));
}

struct ToyNode {
  std::unique_ptr<Transport> transport;
  std::unique_ptr<SimRegistry> registry;
  std::unique_ptr<ToyRunner> runner;
  std::unique_ptr<NodeAgent> agent;
};

/// A gateway that audits, and nodes by name; those whose names begin with "trusted" are.
class AuditorTest : public testing::Test {
 protected:
  void start(double share = 1.0) {
    gateway_ = network_.join("gateway");
    registry_ = std::make_unique<SimRegistry>(*gateway_, records_);
    streams_ = std::make_unique<GatewayStreams>(
        *gateway_, *registry_, "gateway",
        [this](const PickQuery& query, const NodeTable& table) { return pick(query, table); }, 1);
    audit(share);
  }

  void audit(double share) {
    auditor_.reset();
    auditor_ = std::make_unique<Auditor>(
        *streams_, *gateway_, AuditOptions{.model = kModel, .vocab = kToyVocab, .share = share, .seed = 3},
        [](const std::string& node) { return node.starts_with("trusted"); },
        [this](const std::string& node, const std::string& reason) {
          quarantined_.emplace_back(node, reason);
          registry_->quarantine(node, reason);
        });
  }

  void add(const std::string& name, const std::string& numeric_class, ToyModel model = {}) {
    ToyNode& node = nodes_[name];
    node.transport = network_.join(name);
    node.registry = std::make_unique<SimRegistry>(*node.transport, records_);
    node.runner = std::make_unique<ToyRunner>(*node.transport, numeric_class, model);
    node.agent = std::make_unique<NodeAgent>(
        *node.transport, *node.registry, NodeRecord{name, 16, {{kModel, numeric_class}}}, *node.runner,
        [runner = node.runner.get()](Beat& beat) { beat.running = static_cast<std::int64_t>(runner->held()); }, 1);
  }

  /// In turn all that may, but a stream that says whom it is for.
  std::optional<PickedNode> pick(const PickQuery& query, const NodeTable& table) {
    std::vector<std::string> may;
    for (const auto& [name, node] : table.nodes()) {
      const NodeModel* model = NodeTable::model(node, query.placement.model);
      if (!node.usable() || model == nullptr) continue;
      if (!query.numeric_class.empty() && model->numeric_class != query.numeric_class) continue;
      if (std::ranges::find(query.avoid, name) != query.avoid.end()) continue;
      may.push_back(name);
    }
    if (may.empty()) return std::nullopt;
    return PickedNode{.node = may[turn_++ % may.size()]};
  }

  void run_for(Duration time) { clock_.run_until(clock_.now() + time); }

  static Placement request(std::uint64_t seed, float temperature = 0.8f) {
    Placement placement{.model = kModel, .max_new_tokens = 30};
    placement.prompt = {static_cast<std::int32_t>(seed % 50), 7, static_cast<std::int32_t>(seed % 31)};
    placement.sampling = {.temperature = temperature, .seed = seed};
    return placement;
  }

  /// Streams one after the other, on any node or on this one.
  void ask(int count, const std::string& node = {}, float temperature = 0.8f) {
    for (int i = 0; i < count; ++i) {
      std::vector<std::string> only;
      if (!node.empty()) only = {node};
      streams_->submit(
          request(++asked_, temperature), kToyVocab,
          [this](const StreamNews& news) {
            answered_ += std::holds_alternative<StreamDone>(news) ? 1 : 0;
            return Demand::more;
          },
          0, {}, {}, only);
      run_for(milliseconds(100));
    }
  }

  SimClock clock_;
  SimNetwork network_{clock_, 1};
  SimRecords records_;
  std::map<std::string, ToyNode> nodes_;
  std::unique_ptr<Transport> gateway_;
  std::unique_ptr<SimRegistry> registry_;
  std::unique_ptr<GatewayStreams> streams_;
  std::unique_ptr<Auditor> auditor_;
  std::vector<std::pair<std::string, std::string>> quarantined_;
  std::uint64_t asked_ = 0;
  std::size_t turn_ = 0;
  int answered_ = 0;
};

TEST_F(AuditorTest, FindsTheOneThatLies) {
  start();
  add("honest", kClass);
  add("liar", kClass, {.error = 0.3});
  add("trusted", kClass);
  run_for(seconds(2));
  ask(150);
  ASSERT_EQ(quarantined_.size(), 1u);
  EXPECT_EQ(quarantined_[0].first, "liar");
  EXPECT_TRUE(quarantined_[0].second.starts_with("its answers are not those of " + kClass)) << quarantined_[0].second;
  EXPECT_EQ(answered_, 150);
  EXPECT_EQ(auditor_->counters().alarms, 1);
  EXPECT_GE(auditor_->counters().controls, AuditBaseline::kEnough);
  EXPECT_EQ(auditor_->counters().failed, 0);
  EXPECT_LT(auditor_->tests().at("honest").log_evidence(), 0.0);
  EXPECT_EQ(nodes_["honest"].runner->scorings() + nodes_["liar"].runner->scorings(), 0) << "nobody else sees an audit";
  EXPECT_GT(nodes_["trusted"].runner->scorings(), 50);
}

TEST_F(AuditorTest, MakesItsOwnControlsWhereTheTrustedNodeHasNoOtherWork) {
  start();
  add("honest", kClass);
  add("trusted", kClass);
  run_for(seconds(2));
  ask(60, "honest");
  EXPECT_GE(auditor_->counters().controls, AuditBaseline::kEnough);
  EXPECT_GT(auditor_->counters().judged, 30);
  EXPECT_EQ(auditor_->counters().judged + auditor_->counters().early, 60);
  EXPECT_TRUE(quarantined_.empty());
}

TEST_F(AuditorTest, ANodeOfAnotherClassIsJudgedByOneThatComputesAlike) {
  start();
  add("honest", kAlike, {.error = 0.01});
  add("liar", kAlike, {.error = 0.3});
  add("trusted", kClass);
  run_for(seconds(2));
  ask(100, "honest");
  EXPECT_TRUE(quarantined_.empty());
  EXPECT_EQ(auditor_->counters().judged, 100);
  ask(50, "liar");
  ASSERT_FALSE(quarantined_.empty());
  EXPECT_EQ(quarantined_[0].first, "liar");
}

TEST_F(AuditorTest, GreedyAnswersAreJudgedToo) {
  start();
  add("honest", kAlike, {.error = 0.01});
  add("liar", kAlike, {.error = 0.5});
  add("trusted", kClass);
  run_for(seconds(2));
  ask(60, "honest", 0.0f);
  EXPECT_TRUE(quarantined_.empty());
  ask(50, "liar", 0.0f);
  EXPECT_FALSE(quarantined_.empty());
}

TEST_F(AuditorTest, WithoutAReferenceNobodyIsJudged) {
  start();
  add("other", kOtherRecipe, {.weights = 2});
  add("trusted", kClass);
  run_for(seconds(2));
  ask(20, "other");
  EXPECT_EQ(auditor_->counters().no_reference, 20);
  EXPECT_EQ(auditor_->counters().judged, 0);
  EXPECT_TRUE(quarantined_.empty());
}

TEST_F(AuditorTest, TakesTheShareThatIsAskedFor) {
  start(0.25);
  add("honest", kClass);
  add("trusted", kClass);
  run_for(seconds(2));
  ask(400, "honest");
  EXPECT_GT(auditor_->counters().chosen, 65);
  EXPECT_LT(auditor_->counters().chosen, 155) << "and up to sixteen controls";
}

TEST_F(AuditorTest, WhatAClientHeardBeforeItLeftCounts) {
  start();
  add("liar", kClass, {.weights = 9});
  add("trusted", kClass);
  run_for(seconds(2));
  ask(20, "trusted");
  const auto before = auditor_->counters().judged;
  for (int i = 0; i < 12; ++i) {
    auto id = std::make_shared<StreamId>(0);
    *id = streams_->submit(request(++asked_), kToyVocab,
                           [this, id](const StreamNews& news) {
                             if (std::holds_alternative<TokenCame>(news)) streams_->cancel(*id);
                             return Demand::more;
                           },
                           0, {}, {}, {"liar"});
    run_for(milliseconds(100));
  }
  EXPECT_GT(auditor_->counters().judged, before);
  EXPECT_FALSE(quarantined_.empty());
}

TEST_F(AuditorTest, WhatCannotBeScoredIsDrawnAgain) {
  start();
  add("honest", kClass);
  add("liar", kClass, {.error = 0.5});
  add("other", kAlike, {.error = 0.01});
  add("trusted", kClass);
  run_for(seconds(2));
  const auto ask_with_bias = [&](const std::string& node, int count) {
    for (int i = 0; i < count; ++i) {
      Placement placement = request(++asked_);
      placement.choices.resize(2);
      placement.sampling.logit_bias = {{3, 4.0f}, {5, 4.0f}};
      streams_->submit(placement, kToyVocab, [](const StreamNews&) { return Demand::more; }, 0, {}, {}, {node});
      run_for(milliseconds(100));
    }
  };
  ask_with_bias("honest", 60);
  EXPECT_GT(auditor_->counters().judged, 30);
  EXPECT_GE(auditor_->counters().controls, AuditBaseline::kEnough);
  EXPECT_EQ(auditor_->counters().failed, 0);
  EXPECT_TRUE(quarantined_.empty());
  ask_with_bias("liar", 50);
  ASSERT_EQ(quarantined_.size(), 1u);
  EXPECT_EQ(quarantined_[0].first, "liar");
  // Where rounding differs, so do some draws, and how many honest nodes have is not known.
  ask_with_bias("other", 5);
  EXPECT_EQ(auditor_->counters().unscorable, 5);
}

TEST_F(AuditorTest, GoesOnFromWhatWasWrittenDown) {
  start();
  add("honest", kClass);
  add("trusted", kClass);
  run_for(seconds(2));
  ask(60);
  const std::string state = auditor_->json();
  const auto answers = auditor_->tests().at("honest").answers();
  ASSERT_GT(answers, 0);
  audit(1.0);
  EXPECT_TRUE(auditor_->tests().empty());
  ASSERT_TRUE(auditor_->restore(state).ok());
  EXPECT_EQ(auditor_->json(), state);
  ask(10, "honest");
  EXPECT_EQ(auditor_->tests().at("honest").answers(), answers + 10) << "no new controls, no new beginning";
  for (const char* text : {"", "{}", R"({"tests":{"a":1},"baselines":{}})", R"({"tests":{},"baselines":[]})"}) {
    EXPECT_FALSE(auditor_->restore(text).ok()) << text;
  }
  EXPECT_EQ(auditor_->tests().at("honest").answers(), answers + 10) << "what is wrong changes nothing";
}

TEST_F(AuditorTest, ATrustedNodeThatDiesInAnAuditHarmsNobody) {
  start();
  add("honest", kClass);
  add("trusted-a", kClass);
  add("trusted-b", kClass);
  run_for(seconds(2));
  ask(40);
  nodes_.erase("trusted-a");
  ask(40, "honest");
  run_for(seconds(10));
  EXPECT_TRUE(quarantined_.empty());
  EXPECT_EQ(answered_, 80);
  EXPECT_GT(auditor_->counters().judged, 30);
}

}  // namespace
}  // namespace millrace::test
