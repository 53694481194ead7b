#include "cluster/route_picker.h"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace millrace {

namespace {

constexpr double kBetweenPrices = 900.0;  // seconds: tariffs change by hours, in zones of quarters of an hour
constexpr double kMostOff = 1e3;          // that a node's claim of its speed may be from any node's

constexpr const char* kServes = "serves the model";
constexpr const char* kTrusted = "is trusted";

std::string class_label(const std::string& numeric_class) {
  return "class=" + numeric_class;
}
std::string region_label(const std::string& region) {
  return "region=" + region;
}
std::string own_label(const std::string& label) {
  return "label=" + label;
}

bool is_sane(const NodeSpeed& speed) {
  const NodeSpeed usual;
  const auto near = [](double value, double of) { return value > of / kMostOff && value < of * kMostOff; };
  return near(speed.prefill, usual.prefill) && near(speed.step, usual.step) && speed.step_per_sequence >= 0.0 &&
         speed.step_per_sequence <= speed.step;
}

NodeSpeed believed(const NodeSpeed& claim) {
  return is_sane(claim) ? claim : NodeSpeed{};
}

}  // namespace

void RoutePicker::learn_node(const std::string& name, const NodeState& state, double now) {
  auto found = seen_.find(name);
  if (found == seen_.end()) {
    found = seen_.emplace(name, Seen{.index = static_cast<NodeIndex>(names_.size())}).first;
    names_.push_back(name);
    router_.set_node(found->second.index, {.usable = false});
  }
  Seen& seen = found->second;
  const NodeModel* model = NodeTable::model(state, options_.model);
  NodeFacts facts{.usable = model != nullptr && state.usable()};
  seen.terms = state.terms;
  facts.price = seen.terms.price(options_.wall());
  set_priced(seen, facts.price);
  if (model != nullptr) {
    const NodeSpeed claim = believed(model->speed);
    // What was observed holds until the node serves something else or says that it has changed.
    if (seen.numeric_class != model->numeric_class || seen.claimed != claim) {
      seen.numeric_class = model->numeric_class;
      seen.claimed = claim;
      seen.watch.claims(claim);
    }
    facts.speed = seen.watch.speed();
    facts.hoped = seen.watch.hoped(now);
    facts.places = state.record.places;
    facts.kv_tokens = state.beat.kv_tokens;
    facts.context = model->max_tokens;
    // Labels that there are no bits left for are found by nobody who looks for one: streams that have begun go on in
    // any class then, and what wants such a label is refused.
    facts.labels = router_.label(kServes).value_or(0) | router_.label(class_label(model->numeric_class)).value_or(0);
    if (seen.terms.trusted) facts.labels |= router_.label(kTrusted).value_or(0);
    if (!seen.terms.region.empty()) facts.labels |= router_.label(region_label(seen.terms.region)).value_or(0);
    for (const std::string& label : seen.terms.labels) facts.labels |= router_.label(own_label(label)).value_or(0);
  }
  router_.set_node(seen.index, facts);
  if (seen.beat == state.beat.number) return;
  if (state.beat.number < seen.beat) {  // it has restarted, and has nothing
    seen.history.clear();
    router_.prefixes().remove_all(seen.index);
  }
  if (state.beat.kv_tokens > 0) seen.memory = static_cast<std::size_t>(state.beat.kv_tokens / PrefixIndex::kPageTokens);
  seen.beat = state.beat.number;
  seen.watch.beat({.running = state.beat.running,
                   .waiting = state.beat.waiting,
                   .waiting_tokens = state.beat.waiting_tokens,
                   .kv_free = state.beat.kv_free},
                  now);
  set_load(seen, now);
}

void RoutePicker::set_speed(const Seen& seen, double now) {
  NodeFacts facts = router_.facts(seen.index);
  facts.speed = seen.watch.speed();
  facts.hoped = seen.watch.hoped(now);
  router_.set_node(seen.index, facts);
}

void RoutePicker::set_load(const Seen& seen, double now) {
  router_.set_load(seen.index, seen.watch.load(now));
}

void RoutePicker::hear(const NodeTable& nodes, double now) {
  nodes.for_changed(place_, [&](const std::string& name, const NodeState& state) { learn_node(name, state, now); });
}

void RoutePicker::learn(const NodeTable& nodes, double now) {
  hear(nodes, now);
  const auto quarter = static_cast<std::int64_t>(std::floor(options_.wall().count() / kBetweenPrices));
  if (std::exchange(hour_, quarter) != quarter) reprice();
  if (now >= hoped_ + NodeWatch::kBetweenHopes) {
    hoped_ = now;
    std::erase_if(resting_, [&](const Seen* seen) {
      set_speed(*seen, now);
      return !seen->watch.rests();
    });
  }
  std::erase_if(pending_, [&](const Seen* seen) {
    set_load(*seen, now);
    return !seen->watch.computes();
  });
}

void RoutePicker::set_priced(Seen& seen, const NodePrice& price) {
  const bool priced = usd_per_second(price) != 0.0;
  if (std::exchange(seen.priced, priced) == priced) return;
  priced_ += priced ? 1 : -1;
  // Where nothing costs anything, the soonest answer is the cheapest.
  const bool by_cost = options_.policy == RoutePolicy::cheapest_in_slo;
  if (by_cost) router_.set_policy(priced_ > 0 ? RoutePolicy::cheapest_in_slo : RoutePolicy::prefix_aware);
}

void RoutePicker::reprice() {
  for (auto& [name, seen] : seen_) {
    NodeFacts facts = router_.facts(seen.index);
    facts.price = seen.terms.price(options_.wall());
    set_priced(seen, facts.price);
    router_.set_node(seen.index, facts);
  }
}

/// The best of all regions, as the router would rank them, or of any.
std::optional<Route> RoutePicker::pick_in(const std::vector<std::string>& regions, RouteRequest request) {
  if (regions.empty()) {
    const std::vector<Route> routes = router_.pick(request, 1);
    return routes.empty() ? std::nullopt : std::optional(routes.front());
  }
  std::optional<Route> best;
  const std::uint64_t labels = request.labels;
  for (const std::string& region : regions) {
    const std::optional<std::uint64_t> bit = router_.find_label(region_label(region));
    if (!bit) continue;
    request.labels = labels | *bit;
    const std::vector<Route> routes = router_.pick(request, 1);
    if (routes.empty()) continue;
    const Route& route = routes.front();
    const auto rank = [](const Route& r) { return std::tuple(!r.within_slo, r.usd, r.ttft); };
    if (!best || rank(route) < rank(*best)) best = route;
  }
  return best;
}

std::optional<PickedNode> RoutePicker::pick(const PickQuery& query, const NodeTable& nodes, double now) {
  learn(nodes, now);
  const Placement& placement = query.placement;
  if (placement.model != options_.model) return std::nullopt;
  const ServiceWish& wish = query.wish;
  std::vector<std::string> labels{query.numeric_class.empty() ? kServes : class_label(query.numeric_class)};
  if (wish.trusted) labels.emplace_back(kTrusted);
  if (!wish.region.empty()) labels.push_back(region_label(wish.region));
  for (const std::string& label : wish.labels) labels.push_back(own_label(label));
  std::uint64_t bits = 0;
  for (const std::string& label : labels) {
    const std::optional<std::uint64_t> bit = router_.find_label(label);
    if (!bit) return std::nullopt;
    bits |= *bit;
  }
  std::vector<NodeIndex> avoid;
  for (const std::string& name : query.avoid) {
    if (const auto seen = seen_.find(name); seen != seen_.end()) avoid.push_back(seen->second.index);
  }
  // An answer at its beginning is cut to what fits; one that has begun must fit as it was asked for.
  const auto prompt = static_cast<std::int64_t>(placement.prompt.size());
  const bool begun = std::ranges::any_of(placement.choices, &PlacedChoice::has_begun);
  const bool answers = placement.task == Task::generate;
  const auto pages =
      std::make_shared<const std::vector<std::uint64_t>>(PrefixIndex::pages_of(placement.cache_salt, placement.prompt));
  const RouteRequest request{
      .prompt_tokens = prompt,
      .answer_tokens = std::min(expected_.tokens(), static_cast<double>(placement.max_new_tokens)),
      .room = prompt + (begun     ? placement.max_new_tokens
                        : answers ? 1
                                  : 0),
      .pages = *pages,
      .labels = bits,
      .ttft_slo = wish.ttft_slo.value_or(options_.ttft_slo),
      .tpot_slo = wish.tpot_slo.value_or(options_.tpot_slo),
      .lot = ++picks_,
      .avoid = avoid};
  const std::optional<Route> best = pick_in(wish.regions, request);
  if (!best) return std::nullopt;
  const Route& route = *best;
  const std::string& name = names_[route.node];
  return PickedNode{.node = name,
                    .ttft = route.ttft,
                    .tpot = route.tpot,
                    .usd = route.usd,
                    .ttft_slo = request.ttft_slo,
                    .tpot_slo = request.tpot_slo,
                    .within_slo = route.within_slo,
                    .cached_tokens = route.cached_tokens,
                    .pages = pages};
}

void RoutePicker::observe(WorkStage stage, NodeWork& work, double now) {
  const auto found = seen_.find(work.node);
  if (found == seen_.end()) return;
  Seen& seen = found->second;
  switch (stage) {
    case WorkStage::placed:
      if (!seen.watch.computes()) pending_.push_back(&seen);
      seen.watch.placed(work, now);
      if (work.trial) set_speed(seen, now);
      break;
    case WorkStage::began:
      seen.watch.began(work, now);
      if (work.pages != nullptr && seen.tells) {
        router_.prefixes().add(seen.index, *work.pages);  // it will say so, or take all back
      } else if (work.pages != nullptr) {
        seen.history.use(*work.pages, seen.memory, added_, removed_);
        router_.prefixes().remove(seen.index, removed_);
        router_.prefixes().add(seen.index, added_);
      }
      break;
    case WorkStage::left:
      seen.watch.left(work, now);
      tell_kept(router_, work, now);
      if (work.tokens > 0) expected_.ended(work.tokens / std::max<std::int64_t>(1, work.choices));
      set_speed(seen, now);
      if (seen.watch.rests()) resting_.insert(&seen);
      break;
  }
  set_load(seen, now);
}

void RoutePicker::kept(const std::string& node, const PrefixNews& news) {
  const auto found = seen_.find(node);
  if (found == seen_.end()) return;
  Seen& seen = found->second;
  if (news.anew) {
    seen.tells = true;
    seen.history.clear();
    router_.prefixes().remove_all(seen.index);
  }
  if (!seen.tells) return;  // the beginning was not heard
  router_.prefixes().add(seen.index, news.added);
  router_.prefixes().remove(seen.index, news.removed);
}

RoutePicker::Cost RoutePicker::cost(const NodeWork& work) const {
  const auto seen = seen_.find(work.node);
  if (seen == seen_.end()) return {};
  const double busy = busy_seconds(router_.facts(seen->second.index), work);
  const NodePrice price = seen->second.terms.price(options_.wall());
  return {busy * usd_per_second(price), busy * price.watts * price.pue};
}

NodeSpeed RoutePicker::speed(const std::string& node, const NodeModel& model) const {
  const NodeSpeed claim = believed(model.speed);
  const auto seen = seen_.find(node);
  const bool same =
      seen != seen_.end() && seen->second.numeric_class == model.numeric_class && seen->second.claimed == claim;
  return same ? seen->second.watch.speed() : claim;
}

}  // namespace millrace
