#include "cluster/route_picker.h"

#include <algorithm>

namespace millrace {

namespace {

constexpr double kUsualAnswer = 256.0;  // tokens, of the many that a request allows

std::string model_label(const NodeModel& model) {
  return "model=" + model.name;
}

std::string class_label(const std::string& model, const std::string& numeric_class) {
  return "model=" + model + " class=" + numeric_class;
}

}  // namespace

void RoutePicker::learn(const NodeTable& nodes, double now) {
  for (const auto& [name, state] : nodes.nodes()) {
    auto found = seen_.find(name);
    if (found == seen_.end()) {
      found = seen_.emplace(name, Seen{.index = static_cast<NodeIndex>(names_.size())}).first;
      names_.push_back(name);
      router_.set_node(found->second.index, {.usable = false});
    }
    Seen& seen = found->second;
    if (seen.incarnation != state.incarnation || seen.health != state.health ||
        seen.models != state.record.models.size()) {
      seen.incarnation = state.incarnation;
      seen.health = state.health;
      seen.models = state.record.models.size();
      NodeFacts facts = router_.facts(seen.index);
      facts.usable = state.health == NodeHealth::ready;
      facts.labels = 0;
      for (const NodeModel& model : state.record.models) {
        facts.labels |= router_.label(model_label(model)).value_or(0);
        facts.labels |= router_.label(class_label(model.name, model.numeric_class)).value_or(0);
      }
      router_.set_node(seen.index, facts);
    }
    if (seen.beat == state.beat.number) continue;
    seen.beat = state.beat.number;
    router_.set_load(
        seen.index,
        {.running = state.beat.running, .waiting = state.beat.waiting, .waiting_tokens = state.beat.waiting_tokens},
        now);
  }
}

std::optional<std::string> RoutePicker::pick(const PickQuery& query, const NodeTable& nodes, double now) {
  learn(nodes, now);
  const Placement& placement = query.placement;
  const std::string label = query.numeric_class.empty() ? model_label({placement.model, {}})
                                                        : class_label(placement.model, query.numeric_class);
  const std::optional<std::uint64_t> bit = router_.label(label);
  if (!bit) return std::nullopt;
  std::vector<NodeIndex> avoid;
  for (const std::string& name : query.avoid) {
    if (const auto seen = seen_.find(name); seen != seen_.end()) avoid.push_back(seen->second.index);
  }
  const RouteRequest request{.prompt_tokens = static_cast<std::int64_t>(placement.prompt.size()),
                             .answer_tokens = std::min(kUsualAnswer, static_cast<double>(placement.max_new_tokens)),
                             .labels = *bit,
                             .lot = ++picks_,
                             .avoid = avoid};
  const std::vector<Route> routes = router_.pick(request, 1);
  if (routes.empty()) return std::nullopt;
  router_.placed(request, routes.front(), now);
  return names_[routes.front().node];
}

}  // namespace millrace
