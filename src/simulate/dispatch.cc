#include "simulate/dispatch.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace millrace {

namespace {

/// What a node finds that measures itself (self_measure.h): one prompt alone, in chunks, and a token more.
NodeSpeed claim_of(const SimNode& node) {
  constexpr double kPrompt = 512.0;
  const double prompt = std::min(kPrompt, static_cast<double>(node.context) / 2.0);
  const double full = std::floor(prompt / node.chunk), rest = prompt - full * node.chunk;
  const double ttft =
      full * step_seconds(node.speed, node.chunk, 0) + (rest > 0.0 ? step_seconds(node.speed, rest, 0) : 0.0);
  return {.prefill = prompt / std::max(ttft - node.speed.step, ttft / 10.0),
          .step = node.speed.step,
          .step_per_sequence = node.speed.step_per_sequence};
}

}  // namespace

SimDispatch::SimDispatch(const std::vector<SimNode>& nodes, const Workload& work, const SimOptions& options)
    : nodes_(&nodes), work_(&work), options_(&options), known_(nodes.size()) {
  for (const SimNode& node : nodes) most_context_ = std::max(most_context_, node.context);
  std::vector<NodeWatch> watches;
  watches.reserve(nodes.size());
  for (const SimNode& node : nodes) watches.emplace_back(claim_of(node));
  for (int g = 0; g < options.gateways; ++g) {
    gateways_.push_back({.router = Router(options.policy), .nodes = watches, .computing = {}});
    open_label_ = gateways_.back().router.label("batch=open").value_or(0);
  }
  // From the last on, so that each router grows once.
  for (std::size_t n = nodes.size(); n-- > 0;) tell(static_cast<NodeIndex>(n));
}

bool SimDispatch::fits_none(std::size_t request) const {
  const SimRequest& asked = work_->requests[request];
  return asked.prompt + asked.answer > most_context_;
}

double SimDispatch::ttft_slo(std::size_t request) const {
  return work_->requests[request].batch ? std::numeric_limits<double>::infinity() : options_->ttft_slo;
}

double SimDispatch::tpot_slo(std::size_t request) const {
  return work_->requests[request].batch ? std::numeric_limits<double>::infinity() : options_->tpot_slo;
}

void SimDispatch::tell(Gateway& gateway, NodeIndex node) {
  const SimNode& facts = (*nodes_)[node];
  const Known& known = known_[node];
  gateway.router.set_node(node, {.speed = gateway.nodes[node].speed(),
                                 .hoped = gateway.nodes[node].hoped(gateway.now),
                                 .price = {.usd_per_hour = facts.terms.usd_per_hour,
                                           .watts = facts.terms.busy_watts,
                                           .pue = facts.terms.pue,
                                           .usd_per_kwh = known.usd_per_kwh},
                                 .places = facts.places,
                                 .kv_tokens = facts.kv_tokens,
                                 .context = facts.context,
                                 .labels = known.open ? open_label_ : 0,
                                 .usable = known.usable});
}

void SimDispatch::tell(NodeIndex node) {
  for (Gateway& gateway : gateways_) tell(gateway, node);
}

RouteRequest SimDispatch::route_request(const Query& query) const {
  const SimRequest& asked = work_->requests[query.request];
  double answer = gateways_[query.gateway].expected.tokens();
  if (options_->limits_known) answer = std::min(answer, static_cast<double>(asked.answer));
  return {.prompt_tokens = asked.prompt + query.emitted,
          .answer_tokens = std::max(1.0, answer - static_cast<double>(query.emitted)),
          .room = asked.prompt + asked.answer,
          .pages = work_->blocks_of(asked),
          .page_tokens = work_->block_tokens,
          .labels = query.open_only ? open_label_ : 0,
          .ttft_slo = ttft_slo(query.request),
          .tpot_slo = tpot_slo(query.request),
          .lot = lots_,
          .avoid = query.avoid};
}

std::optional<Route> SimDispatch::pick(const Query& query, double now) {
  ++lots_;
  Gateway& gateway = gateways_[query.gateway];
  gateway.now = now;
  if (now >= gateway.hoped + NodeWatch::kBetweenHopes) {
    gateway.hoped = now;
    std::erase_if(gateway.resting, [&](NodeIndex node) {
      tell(gateway, node);
      return !gateway.nodes[node].rests();
    });
  }
  std::erase_if(gateway.computing, [&](NodeIndex node) {
    gateway.router.set_load(node, gateway.nodes[node].load(now));
    return !gateway.nodes[node].computes();
  });
  const std::vector<Route> routes = gateway.router.pick(route_request(query), 1);
  if (routes.empty()) return std::nullopt;
  return routes.front();
}

void SimDispatch::observe(std::size_t from, NodeIndex node, WorkStage stage, NodeWork& work, double now) {
  Gateway& gateway = gateways_[from];
  NodeWatch& watch = gateway.nodes[node];
  gateway.now = now;
  switch (stage) {
    case WorkStage::placed:
      if (!watch.computes()) gateway.computing.push_back(node);
      watch.placed(work, now);
      if (work.trial) tell(gateway, node);
      break;
    case WorkStage::began:
      watch.began(work, now);
      break;
    case WorkStage::left:
      watch.left(work, now);
      tell_kept(gateway.router, work, now);
      if (work.tokens > 0) gateway.expected.ended(work.tokens);
      tell(gateway, node);
      if (watch.rests()) gateway.resting.insert(node);
      break;
  }
  gateway.router.set_load(node, watch.load(now));
}

double SimDispatch::billed(std::size_t gateway, NodeIndex node, const NodeWork& work) const {
  const NodeFacts& facts = gateways_[gateway].router.facts(node);
  return busy_seconds(facts, work) * usd_per_second(facts.price);
}

void SimDispatch::beat(NodeIndex node, const NodeLoad& load, const SimPrefixCache::News& news, double now) {
  known_[node].load = load;
  for (Gateway& gateway : gateways_) {
    gateway.nodes[node].beat(load, now);
    gateway.router.set_load(node, gateway.nodes[node].load(now));
    gateway.router.prefixes().remove(node, news.removed);
    gateway.router.prefixes().add(node, news.added);
  }
}

void SimDispatch::set_usable(NodeIndex node, bool usable) {
  known_[node].usable = usable;
  tell(node);
}

void SimDispatch::forget_cache(NodeIndex node) {
  for (Gateway& gateway : gateways_) gateway.router.prefixes().remove_all(node);
}

void SimDispatch::set_open(NodeIndex node, bool open) {
  if (known_[node].open == open) return;
  known_[node].open = open;
  tell(node);
}

void SimDispatch::set_prices(UnixSeconds now) {
  for (std::size_t n = 0; n < known_.size(); ++n) {
    const double price = (*nodes_)[n].terms.tariff.at(now);
    if (price == known_[n].usd_per_kwh) continue;
    known_[n].usd_per_kwh = price;
    tell(static_cast<NodeIndex>(n));
  }
}

}  // namespace millrace
