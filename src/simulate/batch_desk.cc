#include "simulate/batch_desk.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <utility>

namespace millrace {

namespace {

constexpr double kPlanEvery = 900.0;      // seconds
constexpr double kDeadlineClass = 900.0;  // deadlines that are closer together are planned as one
constexpr double kPlaces = 0.5;           // of a node's places that batch work may fill …
constexpr double kBusy = 0.75;            // … while not more than these are taken in all

}  // namespace

SimBatchDesk::SimBatchDesk(const std::vector<SimNode>& nodes, const Workload& work, const SimOptions& options,
                           SimDispatch& dispatch, Release release)
    : nodes_(&nodes),
      work_(&work),
      options_(&options),
      dispatch_(&dispatch),
      release_(std::move(release)),
      running_(nodes.size(), 0),
      group_of_(nodes.size()) {
  std::map<std::tuple<std::string, std::string, std::string>, std::size_t> known;
  for (std::size_t n = 0; n < nodes.size(); ++n) {
    const SimNode& node = nodes[n];
    const auto [at, is_new] = known.try_emplace({node.type, node.site, node.terms.tariff.name}, groups_.size());
    if (is_new) {
      groups_.emplace_back();
      supply_.push_back({.speed = node.speed,
                         .places = node.places,
                         .usd_per_hour = node.terms.usd_per_hour,
                         .watts = node.terms.busy_watts,
                         .pue = node.terms.pue,
                         .tariff = node.terms.tariff});
    }
    groups_[at->second].nodes.push_back(static_cast<NodeIndex>(n));
    group_of_[n] = at->second;
  }
}

void SimBatchDesk::add(std::size_t request) {
  const auto later = [this](std::size_t a, std::size_t b) {
    return work_->requests[a].deadline < work_->requests[b].deadline;
  };
  if (waiting_.empty() || !later(request, waiting_.back())) {
    waiting_.push_back(request);
  } else {
    waiting_.insert(std::ranges::upper_bound(waiting_, request, later), request);
  }
}

void SimBatchDesk::set_open(Group& group, bool open) {
  if (group.open == open) return;
  group.open = open;
  for (const NodeIndex node : group.nodes) dispatch_->set_open(node, open);
}

void SimBatchDesk::plan(double now) {
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    double spare = 0.0;
    for (const NodeIndex node : groups_[g].nodes) {
      if (!dispatch_->usable(node)) continue;
      const NodeLoad& load = dispatch_->load(node);
      const auto others = static_cast<double>(std::max<std::int64_t>(0, load.running + load.waiting - running_[node]));
      spare += kPlaces * std::max(0.0, 1.0 - others / static_cast<double>((*nodes_)[node].places));
    }
    supply_[g].spare = spare;
  }
  std::vector<BatchLines> lines;
  for (const std::size_t request : waiting_) {
    const SimRequest& asked = work_->requests[request];
    const UnixSeconds deadline = options_->start + UnixSeconds(asked.deadline);
    if (lines.empty() || deadline - lines.back().deadline > UnixSeconds(kDeadlineClass)) lines.push_back({deadline});
    lines.back().prompt_tokens += asked.prompt;
    lines.back().answer_tokens += dispatch_->expected_answer();
  }
  const BatchPlan made = plan_batch(options_->start + UnixSeconds(now), supply_, lines);
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    groups_[g].seconds_left = made.late ? HUGE_VAL : made.seconds[g];
    set_open(groups_[g], groups_[g].seconds_left > 0.0);
  }
  until_ = made.until;
  planned_ = now;
}

void SimBatchDesk::look(double now) {
  if (waiting_.empty()) return;
  if (now - planned_ >= kPlanEvery || options_->start + UnixSeconds(now) >= until_) plan(now);
  std::vector<NodeIndex> full;  // nodes that have no room for batch work now
  constexpr std::size_t kMostFull = 16;
  while (!waiting_.empty() && full.size() < kMostFull) {
    const std::size_t request = waiting_.front();
    const std::optional<Route> route = dispatch_->pick({.request = request, .avoid = full, .open_only = true}, now);
    if (!route) return;
    const SimNode& node = (*nodes_)[route->node];
    const NodeLoad& load = dispatch_->load(route->node);
    const auto places = static_cast<double>(node.places);
    const std::int64_t taken = std::max(load.running + load.waiting, running_[route->node]);
    if (static_cast<double>(running_[route->node] + 1) > std::max(1.0, kPlaces * places) ||
        static_cast<double>(taken + 1) > std::max(1.0, kBusy * places)) {
      full.push_back(route->node);
      continue;
    }
    const SimRequest& asked = work_->requests[request];
    Group& group = groups_[group_of_[route->node]];
    group.seconds_left -=
        batch_seconds(node.speed, node.places, static_cast<double>(asked.prompt - route->cached_tokens),
                      dispatch_->expected_answer());
    if (group.seconds_left <= 0.0) set_open(group, false);
    ++running_[route->node];
    waiting_.pop_front();
    release_(request, *route);
  }
}

}  // namespace millrace
