#include "cluster/route_picker.h"

#include <algorithm>

namespace millrace {

namespace {

constexpr double kUsualAnswer = 256.0;  // tokens, of the many that a request allows

constexpr const char* kServes = "serves the model";

std::string class_label(const std::string& numeric_class) {
  return "class=" + numeric_class;
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
    if (seen.revision != state.revision || seen.health != state.health) {
      seen.revision = state.revision;
      seen.health = state.health;
      NodeFacts facts = router_.facts(seen.index);
      const NodeModel* model = NodeTable::model(state, model_);
      facts.usable = state.health == NodeHealth::ready && model != nullptr;
      facts.labels = 0;
      if (model != nullptr) {
        facts.places = state.record.places;
        facts.context = model->max_tokens;
        // Classes that there are no bits left for are found by nobody who looks for one: streams that have begun go on
        // in any class then.
        facts.labels =
            router_.label(kServes).value_or(0) | router_.label(class_label(model->numeric_class)).value_or(0);
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
  if (placement.model != model_) return std::nullopt;
  const std::optional<std::uint64_t> bit =
      router_.label(query.numeric_class.empty() ? kServes : class_label(query.numeric_class));
  if (!bit) return std::nullopt;
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
                             .labels = *bit,
                             .lot = ++picks_,
                             .avoid = avoid};
  const std::vector<Route> routes = router_.pick(request, 1);
  if (routes.empty()) return std::nullopt;
  router_.placed(request, routes.front(), now);
  return names_[routes.front().node];
}

}  // namespace millrace
