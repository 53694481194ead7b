#include "cluster/route_picker.h"

#include <algorithm>
#include <cmath>

namespace millrace {

namespace {

constexpr double kUsualAnswer = 256.0;    // tokens, of the many that a request allows
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
  if (model != nullptr) {
    const NodeSpeed claim = is_sane(model->speed) ? model->speed : NodeSpeed{};
    // What was observed holds until the node serves something else or says that it has changed.
    if (seen.numeric_class != model->numeric_class || seen.claimed != claim) {
      seen.numeric_class = model->numeric_class;
      seen.claimed = claim;
      seen.profile = SpeedProfile(claim);
    }
    facts.speed = seen.profile.speed();
    facts.places = state.record.places;
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
  seen.beat = state.beat.number;
  seen.waiting = state.beat.waiting;
  router_.set_load(
      seen.index,
      {.running = state.beat.running, .waiting = state.beat.waiting, .waiting_tokens = state.beat.waiting_tokens}, now);
}

void RoutePicker::learn(const NodeTable& nodes, double now) {
  nodes.for_changed(place_, [&](const std::string& name, const NodeState& state) { learn_node(name, state, now); });
  const auto quarter = static_cast<std::int64_t>(std::floor(options_.wall().count() / kBetweenPrices));
  if (std::exchange(hour_, quarter) != quarter) reprice();
}

void RoutePicker::reprice() {
  for (const auto& [name, seen] : seen_) {
    NodeFacts facts = router_.facts(seen.index);
    facts.price = seen.terms.price(options_.wall());
    router_.set_node(seen.index, facts);
  }
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
  const RouteRequest request{.prompt_tokens = prompt,
                             .answer_tokens = std::min(kUsualAnswer, static_cast<double>(placement.max_new_tokens)),
                             .room = prompt + (begun ? placement.max_new_tokens : 1),
                             .labels = bits,
                             .ttft_slo = wish.ttft_slo.value_or(options_.ttft_slo),
                             .tpot_slo = wish.tpot_slo.value_or(options_.tpot_slo),
                             .lot = ++picks_,
                             .avoid = avoid};
  const std::vector<Route> routes = router_.pick(request, 1);
  if (routes.empty()) return std::nullopt;
  const Route& route = routes.front();
  router_.placed(request, route, now);
  const std::string& name = names_[route.node];
  return PickedNode{.node = name,
                    .ttft = route.ttft,
                    .tpot = route.tpot,
                    .usd = route.usd,
                    .ttft_slo = request.ttft_slo,
                    .tpot_slo = request.tpot_slo,
                    .within_slo = route.within_slo,
                    .queued = seen_.find(name)->second.waiting > 0};
}

void RoutePicker::observe(const NodeWork& work) {
  const auto seen = seen_.find(work.node);
  if (seen == seen_.end()) return;
  seen->second.profile.observe(work);
  NodeFacts facts = router_.facts(seen->second.index);
  facts.speed = seen->second.profile.speed();
  router_.set_node(seen->second.index, facts);
}

RoutePicker::Cost RoutePicker::cost(const NodeWork& work) const {
  const auto seen = seen_.find(work.node);
  if (seen == seen_.end()) return {};
  const NodeFacts& facts = router_.facts(seen->second.index);
  const double prompt = static_cast<double>(work.prompt_tokens - work.cached_tokens) / facts.speed.prefill;
  const double each = facts.speed.step / static_cast<double>(facts.places) + facts.speed.step_per_sequence;
  const double busy = prompt + static_cast<double>(work.tokens) * each;
  const NodePrice price = seen->second.terms.price(options_.wall());
  return {busy * usd_per_second(price), busy * price.watts * price.pue};
}

NodeSpeed RoutePicker::speed(const std::string& node) const {
  const auto seen = seen_.find(node);
  return seen == seen_.end() ? NodeSpeed{.prefill = 0.0, .step = 0.0, .step_per_sequence = 0.0}
                             : router_.facts(seen->second.index).speed;
}

}  // namespace millrace
