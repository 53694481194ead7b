#include "simulate/protocol_sim.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace millrace {

namespace {

constexpr const char* kModel = "sim";
constexpr const char* kClass = "sim";
constexpr double kBefore = 5.0;     // seconds in which nodes and gateways find each other, before the first request
constexpr double kQuarter = 900.0;  // seconds
constexpr double kDeskEvery = 1.0;
constexpr std::int32_t kVocab = 2;

}  // namespace

ProtocolSim::ProtocolSim(const std::vector<SimNode>& nodes, const Workload& work, const SimOptions& options)
    : nodes_(&nodes),
      work_(&work),
      options_(&options),
      network_(clock_, options.seed),
      dice_(options.seed ^ 0x9a7e),
      churn_(nodes, options.seed, options.churn),
      dispatch_(nodes, work, options),
      tally_(work, options),
      desk_(nodes, work, options, dispatch_,
            [this](std::size_t request, const Route& route) {
              chosen_[request] = route.node;
              submit(request);
            }),
      chosen_(work.requests.size()),
      at_(work.requests.size(), 0) {
  cloud_.reserve(nodes.size());
  for (std::size_t n = 0; n < nodes.size(); ++n) {
    const auto node = static_cast<NodeIndex>(n);
    cloud_.push_back({.name = fmt::format("n{}", n), .process = {}, .meter = NodeMeter(nodes[n].terms)});
    if (churn_.starts_down(node)) {
      at(churn_.down_for(node), [this, node] { start_node(node); });
    } else {
      at(churn_.phase(node) - kBefore, [this, node] { start_node(node); });
    }
  }
  for (std::size_t g = 0; g < static_cast<std::size_t>(options.gateways); ++g) {
    Gateway gateway;
    const std::string name = fmt::format("g{}", g);
    gateway.transport = network_.join(name);
    gateway.registry = std::make_unique<SimRegistry>(*gateway.transport, records_);
    gateway.streams = std::make_unique<GatewayStreams>(
        *gateway.transport, *gateway.registry, name,
        [this, g](const PickQuery& query, const NodeTable& table) { return pick(g, query, table); },
        static_cast<std::uint32_t>(dice_.below(1ull << 32)));
    gateway.streams->on_work = [this, g](WorkStage stage, NodeWork& done) {
      const NodeIndex node = index_of(done.node);
      dispatch_.observe(g, node, stage, done, clock_s());
      if (stage == WorkStage::left) tally_.billed(dispatch_.billed(g, node, done));
    };
    gateway.streams->on_beat = [this, streams = gateway.streams.get()] { learn(streams->nodes()); };
    gateways_.push_back(std::move(gateway));
  }
  dispatch_.set_prices(options.start);
}

double ProtocolSim::clock_s() const {
  return std::chrono::duration<double>(clock_.now()).count();
}

double ProtocolSim::now() const {
  return clock_s() - kBefore;
}

void ProtocolSim::at(double when, std::function<void()> call) {
  clock_.at(Instant(static_cast<std::int64_t>(std::ceil((when + kBefore) * 1e9))), std::move(call));
}

SimResult ProtocolSim::run() {
  const double into = std::fmod(options_->start.count(), kQuarter);
  at(kQuarter - (into < 0.0 ? into + kQuarter : into), [this] { quarter(); });
  if (!work_->requests.empty()) at(work_->requests.front().arrival, [this] { arrive(); });
  while (tally_.open() > 0 && clock_.step()) {
  }
  std::vector<const NodeMeter*> meters;
  for (Node& node : cloud_) {
    if (node.process) node.process->runner->count_idle();
    meters.push_back(&node.meter);
  }
  return tally_.result(*nodes_, meters);
}

void ProtocolSim::start_node(NodeIndex index) {
  Node& node = cloud_[index];
  const SimNode& facts = (*nodes_)[index];
  Process process;
  process.transport = network_.join(node.name);
  process.registry = std::make_unique<SimRegistry>(*process.transport, records_);
  process.runner = std::make_unique<StepRunner>(*process.transport, clock_, options_->start - UnixSeconds(kBefore),
                                                facts, *work_, node.meter);
  process.agent = std::make_unique<NodeAgent>(
      *process.transport, *process.registry,
      NodeRecord{.node = node.name, .places = facts.places, .models = {{kModel, kClass, facts.context}}},
      *process.runner,
      [runner = process.runner.get()](Beat& beat) {
        const NodeLoad load = runner->load();
        beat.running = load.running;
        beat.waiting = load.waiting;
        beat.waiting_tokens = load.waiting_tokens;
        beat.kv_free = load.kv_free;
      },
      static_cast<std::uint32_t>(dice_.below(1ull << 32)));
  node.process = std::move(process);
  dispatch_.forget_cache(index);  // a process that begins has nothing in it
  if (!churn_.fails(index)) return;
  at(std::max(now(), 0.0) + churn_.up_for(index), [this, index] { kill_node(index); });
}

void ProtocolSim::kill_node(NodeIndex index) {
  tally_.node_failed();
  cloud_[index].process.reset();
  at(now() + churn_.down_for(index), [this, index] { start_node(index); });
}

void ProtocolSim::arrive() {
  const std::size_t request = next_arrival_++;
  if (next_arrival_ < work_->requests.size()) at(work_->requests[next_arrival_].arrival, [this] { arrive(); });
  if (dispatch_.fits_none(request)) {
    tally_.failed(request);
  } else if (work_->requests[request].batch && options_->batch == BatchMode::deferred) {
    desk_.add(request);
    if (!std::exchange(desk_looks_, true)) at(now() + kDeskEvery, [this] { look_at_batch(); });
  } else {
    submit(request);
  }
}

void ProtocolSim::submit(std::size_t request) {
  const SimRequest& asked = work_->requests[request];
  Placement placement;
  placement.model = kModel;
  placement.prompt.assign(static_cast<std::size_t>(asked.prompt), 1);
  placement.max_new_tokens = asked.answer;
  placement.sampling.seed = request;
  gateways_[request % gateways_.size()].streams->submit(
      std::move(placement), kVocab, [this, request](const StreamNews& news) { return read(request, news); });
}

Demand ProtocolSim::read(std::size_t request, const StreamNews& news) {
  if (std::holds_alternative<TokenCame>(news)) tally_.first_token(request, now());
  const auto* done = std::get_if<StreamDone>(&news);
  if (done == nullptr) return Demand::more;
  for (int i = 0; i < done->migrations; ++i) tally_.migrated(request);
  const SimRequest& asked = work_->requests[request];
  if (done->error) {
    tally_.failed(request);
  } else {
    tally_.ended(request, now(), index_of(done->node), done->cached_tokens);
  }
  if (asked.batch && options_->batch == BatchMode::deferred) desk_.left(at_[request]);
  return Demand::more;
}

NodeIndex ProtocolSim::index_of(const std::string& name) const {
  return static_cast<NodeIndex>(std::stoul(name.substr(1)));
}

void ProtocolSim::learn(const NodeTable& table) {
  for (const auto& [name, state] : table.nodes()) {
    const NodeIndex index = index_of(name);
    Node& node = cloud_[index];
    const bool usable = state.health == NodeHealth::ready && NodeTable::model(state, kModel) != nullptr;
    if (usable != dispatch_.usable(index)) dispatch_.set_usable(index, usable);
    if (node.incarnation == state.beat.incarnation && node.beat == state.beat.number) continue;
    node.incarnation = state.beat.incarnation;
    node.beat = state.beat.number;
    dispatch_.beat(index,
                   {.running = state.beat.running,
                    .waiting = state.beat.waiting,
                    .waiting_tokens = state.beat.waiting_tokens,
                    .kv_free = state.beat.kv_free},
                   node.process ? node.process->runner->take_news() : SimPrefixCache::News{}, clock_s());
  }
}

std::optional<PickedNode> ProtocolSim::pick(std::size_t gateway, const PickQuery& query, const NodeTable& table) {
  learn(table);
  const std::size_t request = query.placement.sampling.seed;
  std::vector<NodeIndex> avoid;
  for (const std::string& name : query.avoid) avoid.push_back(index_of(name));
  if (const auto chosen = std::exchange(chosen_[request], std::nullopt)) {
    at_[request] = *chosen;
    return PickedNode{.node = cloud_[*chosen].name};
  }
  const std::optional<Route> route =
      dispatch_.pick({.request = request,
                      .gateway = gateway,
                      .emitted = static_cast<std::int64_t>(query.placement.choices.front().tokens.size()),
                      .avoid = avoid},
                     clock_s());
  if (!route) return std::nullopt;
  if (work_->requests[request].batch && options_->batch == BatchMode::deferred) {
    desk_.moved(at_[request], route->node);
  }
  at_[request] = route->node;
  return PickedNode{.node = cloud_[route->node].name,
                    .ttft = route->ttft,
                    .tpot = route->tpot,
                    .usd = route->usd,
                    .ttft_slo = dispatch_.ttft_slo(request),
                    .tpot_slo = dispatch_.tpot_slo(request),
                    .within_slo = route->within_slo,
                    .cached_tokens = route->cached_tokens};
}

void ProtocolSim::look_at_batch() {
  learn(gateways_.front().streams->nodes());
  desk_.look(now());
  if (tally_.open() > 0) at(now() + kDeskEvery, [this] { look_at_batch(); });
}

void ProtocolSim::quarter() {
  dispatch_.set_prices(options_->start + UnixSeconds(now() + 1e-3));
  for (Node& node : cloud_) {
    if (node.process) node.process->runner->count_idle();
  }
  if (tally_.open() > 0) at(now() + kQuarter, [this] { quarter(); });
}

}  // namespace millrace
