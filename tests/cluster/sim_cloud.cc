#include "sim_cloud.h"

#include <fmt/format.h>

#include <algorithm>

namespace millrace::test {

namespace {

constexpr const char* kModel = "sim";

void add(GatewayStreams::Counters& sum, const GatewayStreams::Counters& more) {
  sum.submitted += more.submitted;
  sum.done += more.done;
  sum.failed += more.failed;
  sum.cancelled += more.cancelled;
  sum.migrations += more.migrations;
  sum.placements += more.placements;
  sum.placed_again += more.placed_again;
  sum.tokens += more.tokens;
  sum.fenced += more.fenced;
  sum.malformed += more.malformed;
  sum.breaches += more.breaches;
  sum.doubled += more.doubled;
}

void add(NodeStreams::Counters& sum, const NodeStreams::Counters& more) {
  sum.placed += more.placed;
  sum.completed += more.completed;
  sum.cancelled += more.cancelled;
  sum.orphaned += more.orphaned;
  sum.frames += more.frames;
  sum.resent += more.resent;
  sum.unknown += more.unknown;
  sum.malformed += more.malformed;
  sum.fenced += more.fenced;
}

/// The node with the fewest sequences of those that may.
std::optional<PickedNode> pick_idle(const PickQuery& query, const NodeTable& table) {
  std::optional<PickedNode> best;
  std::int64_t least = 0;
  for (const auto& [name, node] : table.nodes()) {
    const NodeModel* model = NodeTable::model(node, query.placement.model);
    if (!node.usable() || model == nullptr) continue;
    if (!query.numeric_class.empty() && model->numeric_class != query.numeric_class) continue;
    if (std::ranges::find(query.avoid, name) != query.avoid.end()) continue;
    const std::int64_t load = node.beat.running + node.beat.waiting;
    if (best && load >= least) continue;
    best = PickedNode{.node = name};
    least = load;
  }
  return best;
}

}  // namespace

SimCloud::SimCloud(const SimCloudOptions& options)
    : network(clock, options.seed), dice(options.seed ^ 0x5eed), options_(options) {
  for (int i = 0; i < options.nodes; ++i) {
    node_names_.push_back(fmt::format("node-{}", i));
    classes_[node_names_.back()] = fmt::format("class-{}", i % options.classes);
    start_node(node_names_.back());
  }
  for (int i = 0; i < options.gateways; ++i) {
    gateway_names_.push_back(fmt::format("gateway-{}", i));
    start_gateway(gateway_names_.back());
  }
}

SimCloud::~SimCloud() = default;

void SimCloud::start_node(const std::string& name) {
  auto node = std::make_unique<Node>();
  node->transport = network.join(name);
  node->registry = std::make_unique<SimRegistry>(*node->transport, records_);
  const Duration step = std::chrono::milliseconds(20 + dice.below(60));
  node->runner = std::make_unique<SimRunner>(*node->transport, kModel, classes_.at(name), step, 16);
  node->agent = std::make_unique<NodeAgent>(
      *node->transport, *node->registry, NodeRecord{name, 16, {{kModel, classes_.at(name)}}}, *node->runner,
      [runner = node->runner.get()](Beat& beat) { beat.running = static_cast<std::int64_t>(runner->held()); },
      static_cast<std::uint32_t>(dice.below(1ull << 32)), options_.timing);
  nodes_[name] = std::move(node);
}

void SimCloud::kill_node(const std::string& name) {
  const auto node = nodes_.extract(name);
  if (node.empty()) return;
  add(node_counters, node.mapped()->agent->streams().counters());
}

void SimCloud::drain_node(const std::string& name) {
  if (const auto node = nodes_.find(name); node != nodes_.end()) node->second->agent->drain();
}

void SimCloud::start_gateway(const std::string& name) {
  auto gateway = std::make_unique<Gateway>();
  gateway->transport = network.join(name);
  gateway->registry = std::make_unique<SimRegistry>(*gateway->transport, records_);
  gateway->streams =
      std::make_unique<GatewayStreams>(*gateway->transport, *gateway->registry, name, pick_idle,
                                       static_cast<std::uint32_t>(dice.below(1ull << 32)), options_.timing);
  gateways_[name] = std::move(gateway);
}

void SimCloud::kill_gateway(const std::string& name) {
  const auto gateway = gateways_.extract(name);
  if (gateway.empty()) return;
  add(gateway_counters, gateway.mapped()->streams->counters());
  for (const auto& stream : seen_) {
    if (stream->gateway == name && !stream->done) stream->lost = true;
  }
}

void SimCloud::count() {
  for (const auto& [name, gateway] : gateways_) add(gateway_counters, gateway->streams->counters());
  for (const auto& [name, node] : nodes_) add(node_counters, node->agent->streams().counters());
}

Demand SimCloud::read(SeenStream& stream, const StreamNews& news, double slow) {
  const auto object = [&](std::string what) {
    if (stream.wrong.empty()) stream.wrong = std::move(what);
  };
  if (stream.lost || stream.cancelled) object("news of a stream that nobody reads");
  if (stream.done) object("news after the end");
  if (const auto* came = std::get_if<TokenCame>(&news)) {
    const auto choice = static_cast<std::size_t>(came->choice);
    if (stream.ended[choice]) object("a token after the end of its choice");
    stream.tokens[choice].push_back(came->token);
  } else if (const auto* end = std::get_if<ChoiceEnd>(&news)) {
    const auto choice = static_cast<std::size_t>(end->choice);
    if (stream.ended[choice]) object("a choice that ended twice");
    stream.ended[choice] = true;
  } else if (const auto* embedding = std::get_if<EmbeddingCame>(&news)) {
    if (!stream.embedding.empty()) object("an embedding that came twice");
    stream.embedding = embedding->values;
  } else {
    stream.done = std::get<StreamDone>(news);
    return Demand::more;
  }
  if (!dice.chance(slow)) return Demand::more;
  const auto pause = std::chrono::milliseconds(dice.below(8000));
  clock.at(clock.now() + pause, [this, &stream] {
    network.call(stream.gateway, [this, &stream] {
      if (!stream.lost && !stream.done && !stream.cancelled) gateway(stream.gateway).resume(stream.id);
    });
  });
  return Demand::pause;
}

SeenStream& SimCloud::begin_stream(const std::string& gateway_name, Placement placement, double slow) {
  seen_.push_back(std::make_unique<SeenStream>());
  SeenStream& stream = *seen_.back();
  placement.model = kModel;
  stream.asked = placement;
  stream.gateway = gateway_name;
  stream.tokens.resize(placement.choices.size());
  stream.ended.resize(placement.choices.size());
  stream.id = gateway(gateway_name)
                  .submit(
                      std::move(placement), kSimVocab,
                      [this, &stream, slow](const StreamNews& news) { return read(stream, news, slow); }, kSimHidden);
  return stream;
}

void SimCloud::begin_stream() {
  constexpr double kSlowReaders = 0.1, kPauses = 0.05, kLeave = 0.05, kEmbeddings = 0.1;
  std::vector<std::string> awake;
  for (const auto& [name, gateway] : gateways_) {
    if (!network.is_frozen(name)) awake.push_back(name);
  }
  if (awake.empty()) return;
  Placement placement;
  placement.max_new_tokens = 1 + static_cast<std::int64_t>(dice.below(400));
  placement.prompt.resize(1 + dice.below(50));
  for (std::int32_t& token : placement.prompt) token = static_cast<std::int32_t>(dice.below(kSimVocab));
  placement.choices.resize(dice.chance(0.2) ? 4 : 1);
  placement.stop_ids = {kSimStop};
  placement.sampling.seed = dice.below(1u << 30);
  if (dice.chance(kEmbeddings)) {
    placement.task = Task::embed_mean;
    placement.choices.resize(1);
  }
  SeenStream& stream =
      begin_stream(awake[dice.below(awake.size())], std::move(placement), dice.chance(kSlowReaders) ? kPauses : 0.0);
  if (!dice.chance(kLeave)) return;
  clock.at(clock.now() + std::chrono::milliseconds(dice.below(10000)), [this, &stream] {
    network.call(stream.gateway, [this, &stream] {
      if (stream.lost || stream.done) return;
      stream.cancelled = true;
      gateway(stream.gateway).cancel(stream.id);
    });
  });
}

std::string SimCloud::verdict(const SeenStream& stream) const {
  if (!stream.wrong.empty()) return stream.wrong;
  if (stream.lost || stream.cancelled) return {};
  if (!stream.done) return "it did not end";
  if (stream.done->error) return "it failed: " + stream.done->error->message;
  if (stream.asked.task != Task::generate) {
    return stream.embedding == sim_embedding(stream.asked) ? "" : "it is not the embedding of its prompt";
  }
  for (std::size_t c = 0; c < stream.tokens.size(); ++c) {
    if (!stream.ended[c]) return fmt::format("choice {} did not end", c);
    const std::vector<std::int32_t>& tokens = stream.tokens[c];
    bool same = false;  // as an undisturbed node of one class gives it
    for (int i = 0; i < options_.classes; ++i) {
      same = same || tokens == sim_answer(fmt::format("class-{}", i), stream.asked, c);
    }
    if (same) continue;
    if (stream.done->identical) return fmt::format("choice {} is said to be identical and is not", c);
    std::vector<std::int32_t> before;
    for (const std::int32_t token : tokens) {
      bool valid = false;
      for (int i = 0; i < options_.classes; ++i) {
        valid = valid || token == sim_token(fmt::format("class-{}", i), stream.asked, c, before);
      }
      if (!valid) return fmt::format("choice {}: token {} is nobody's", c, before.size());
      before.push_back(token);
    }
  }
  return {};
}

}  // namespace millrace::test
