// Any bytes as the cluster's messages: what is understood has one way only to be written; and what a node and a gateway
// make of whatever comes, while they serve each other.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>

#include "cluster/cluster_view.h"
#include "cluster/gateway_streams.h"
#include "cluster/messages.h"
#include "cluster/node_agent.h"
#include "cluster/placement.h"
#include "cluster/prefix_news.h"
#include "cluster/sim_network.h"
#include "cluster/sim_registry.h"
#include "cluster/status_table.h"

namespace {

using namespace millrace;

void require(bool condition) {
  if (!condition) std::abort();
}

template <typename T>
void check_same(const Result<T>& decoded, std::span<const std::byte> bytes) {
  if (decoded.ok()) {
    require(std::ranges::equal(encode(*decoded), bytes));
  } else {
    require(!decoded.error().message.empty());
  }
}

/// Accepts everything, and answers each placement that asks for tokens with one a step.
class Runner : public StreamRunner {
 public:
  explicit Runner(Transport& transport) : transport_(&transport) { step(); }
  void start(RunId run, Placement placement, Sink sink) override {
    runs_[run] = {std::move(sink), placement.task == Task::generate, 0};
  }
  void pause(RunId) override {}
  void resume(RunId) override {}
  void cancel(RunId run) override { runs_.erase(run); }

 private:
  struct Run {
    Sink sink;
    bool tokens = true;
    int steps = 0;
  };

  void step() {
    const auto runs = runs_;
    for (const auto& [id, run] : runs) {
      StreamEvent event = TokenCame{.choice = 0, .token = 1};
      if (run.steps == 0) event = Accepted{};
      if (const auto here = runs_.find(id); here != runs_.end()) ++here->second.steps;
      if (run.steps == 0 || run.tokens) run.sink({event});
    }
    transport_->after(std::chrono::milliseconds(50), [this] { step(); });
  }

  Transport* transport_;
  std::map<RunId, Run> runs_;
};

/// The first byte says on which subject, the second for how long one waits then, the third how long it is.
void speak(std::span<const std::byte> bytes) {
  SimClock clock;
  SimNetwork network(clock, 1);
  SimRecords records;
  const std::unique_ptr<Transport> node_transport = network.join("node"), gateway_transport = network.join("gateway"),
                                   stranger = network.join("stranger");
  SimRegistry node_registry(*node_transport, records), gateway_registry(*gateway_transport, records);
  Runner runner(*node_transport);
  NodeAgent node(
      *node_transport, node_registry, {"node", 16, {{"m", "c"}}}, runner, [](Beat&) {}, 1);
  GatewayStreams gateway(
      *gateway_transport, gateway_registry, "gateway",
      [](const PickQuery&, const NodeTable& table) {
        const NodeState* state = table.find("node");
        const bool ready = state != nullptr && state->health == NodeHealth::ready;
        return ready ? std::optional(PickedNode{.node = "node"}) : std::nullopt;
      },
      0);
  clock.run_until(std::chrono::seconds(3));
  Placement work{.model = "m", .prompt = {1}, .max_new_tokens = 1000};
  std::int64_t tokens = 0;
  gateway.submit(work, 100, [&](const StreamNews& news) {
    tokens += std::holds_alternative<TokenCame>(news) ? 1 : 0;
    return Demand::more;
  });
  constexpr std::int64_t kHidden = 3;
  const Placement embedding{.model = "m", .task = Task::embed_last, .prompt = {1}, .max_new_tokens = 0};
  gateway.submit(
      embedding, 100,
      [](const StreamNews& news) {
        require(!std::holds_alternative<TokenCame>(news));
        if (const auto* came = std::get_if<EmbeddingCame>(&news)) require(came->values.size() == kHidden);
        return Demand::more;
      },
      kHidden);
  const std::string subjects[] = {put_subject("node", "gateway"),
                                  say_subject("gateway", "node", {1, 1}),
                                  say_subject("gateway", "node", {1, 2}),
                                  beat_subject("node"),
                                  beat_subject("other"),
                                  "mr.say.gateway.x",
                                  put_subject("node", "other"),
                                  say_subject("gateway", "node", {2, 1})};
  while (bytes.size() >= 3) {
    const auto subject = std::to_integer<std::size_t>(bytes[0]) % std::size(subjects);
    const auto wait = std::chrono::milliseconds(std::to_integer<int>(bytes[1]) * 10);
    const std::size_t length = std::min(std::to_integer<std::size_t>(bytes[2]), bytes.size() - 3);
    stranger->publish(subjects[subject], bytes.subspan(3, length));
    clock.run_until(clock.now() + wait);
    bytes = bytes.subspan(3 + length);
  }
  require(tokens <= work.max_new_tokens);
}

/// What an observer makes of it: of nodes' beats and of gateways'.
void watch(std::span<const std::byte> bytes) {
  ClusterView view;
  const std::size_t half = bytes.size() / 2;
  view.take(beat_subject("node"), bytes, std::chrono::seconds(1));
  view.take(beat_subject("node"), bytes.first(half), std::chrono::seconds(2));
  view.take(gate_subject("gate"), bytes, std::chrono::seconds(1));
  view.take(gate_subject("gate"), bytes.subspan(half), std::chrono::seconds(2));
  view.look(std::chrono::seconds(3));
  require(!status_text(view, std::chrono::seconds(3), UnixSeconds(0), 40).empty());
  require(!status_json(view, std::chrono::seconds(3), UnixSeconds(0)).dump().empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  check_same(decode_put(bytes), bytes);
  check_same(decode_say(bytes), bytes);
  check_same(decode_beat(bytes), bytes);
  check_same(decode_prefix_news(bytes), bytes);
  check_same(decode_gate_beat(bytes), bytes);
  check_same(decode_placement(bytes), bytes);
  watch(bytes);
  if (size < 512) speak(bytes);
  return 0;
}
