#include "simulate/dispatch.h"

#include <algorithm>
#include <limits>

namespace millrace {

namespace {

constexpr double kWeightOfAnswer = 0.005;  // of one answer in what the next is expected to have

}  // namespace

SimDispatch::SimDispatch(const std::vector<SimNode>& nodes, const Workload& work, const SimOptions& options)
    : nodes_(&nodes),
      work_(&work),
      options_(&options),
      routers_(static_cast<std::size_t>(options.gateways), Router(options.policy)),
      known_(nodes.size()) {
  for (Router& router : routers_) open_label_ = router.label("batch=open").value_or(0);
  for (const SimNode& node : nodes) most_context_ = std::max(most_context_, node.context);
  // From the last on, so that each router grows once.
  for (std::size_t n = nodes.size(); n-- > 0;) tell(static_cast<NodeIndex>(n));
}

bool SimDispatch::fits_none(std::size_t request) const {
  const SimRequest& asked = work_->requests[request];
  return asked.prompt + asked.answer > most_context_;
}

void SimDispatch::tell(NodeIndex node) {
  const SimNode& facts = (*nodes_)[node];
  const Known& known = known_[node];
  for (Router& router : routers_) {
    router.set_node(node, {.speed = facts.speed,
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
}

RouteRequest SimDispatch::route_request(const Query& query) const {
  const SimRequest& asked = work_->requests[query.request];
  RouteRequest request{.prompt_tokens = asked.prompt + query.emitted,
                       .answer_tokens = std::max(1.0, expected_answer_ - static_cast<double>(query.emitted)),
                       .room = asked.prompt + asked.answer,
                       .pages = work_->blocks_of(asked),
                       .page_tokens = work_->block_tokens,
                       .labels = query.open_only ? open_label_ : 0,
                       .lot = lots_,
                       .avoid = query.avoid};
  if (!asked.batch) {
    // What is left of the time for the first token; one that is late already is to come as soon as it may.
    constexpr double kLeast = 0.05;  // of the limit
    request.ttft_slo = query.emitted > 0 ? options_->ttft_slo
                                         : std::max(options_->ttft_slo - query.waited, kLeast * options_->ttft_slo);
    request.tpot_slo = options_->tpot_slo;
  }
  return request;
}

std::optional<Route> SimDispatch::look(const Query& query) {
  ++lots_;
  const std::vector<Route> routes = routers_[query.gateway].pick(route_request(query), 1);
  if (routes.empty()) return std::nullopt;
  return routes.front();
}

void SimDispatch::place(const Query& query, const Route& route, double now) {
  routers_[query.gateway].placed(route_request(query), route, now);
}

std::optional<Route> SimDispatch::pick(const Query& query, double now) {
  const std::optional<Route> route = look(query);
  if (route) place(query, *route, now);
  return route;
}

void SimDispatch::beat(NodeIndex node, const NodeLoad& load, const SimPrefixCache::News& news, double now) {
  known_[node].load = load;
  for (Router& router : routers_) {
    router.set_load(node, load, now);
    router.prefixes().remove(node, news.removed);
    router.prefixes().add(node, news.added);
  }
}

void SimDispatch::set_usable(NodeIndex node, bool usable) {
  known_[node].usable = usable;
  tell(node);
}

void SimDispatch::forget_cache(NodeIndex node) {
  for (Router& router : routers_) router.prefixes().remove_all(node);
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

void SimDispatch::answered(std::int64_t tokens) {
  expected_answer_ += kWeightOfAnswer * (static_cast<double>(tokens) - expected_answer_);
}

}  // namespace millrace
