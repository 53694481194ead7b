// RoutePicker: the router in the place of a NodePicker: what the gateway knows of nodes, told to it. It also learns how
// fast they are, and knows what their work costs.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cluster/gateway_streams.h"
#include "cluster/node_watch.h"
#include "cluster/prefix_history.h"
#include "cluster/prefix_news.h"
#include "cluster/router.h"
#include "cluster/tariff.h"

namespace millrace {

struct RoutePickerOptions {
  std::string model;  // streams are of this one; what else nodes serve does not matter
  RoutePolicy policy = RoutePolicy::cheapest_in_slo;
  double ttft_slo = std::numeric_limits<double>::infinity();  // seconds, of requests that name none
  double tpot_slo = std::numeric_limits<double>::infinity();
  /// The time of day, for tariffs.
  std::function<UnixSeconds()> wall = [] {
    return std::chrono::duration_cast<UnixSeconds>(std::chrono::system_clock::now().time_since_epoch());
  };
};

class RoutePicker {
 public:
  explicit RoutePicker(RoutePickerOptions options)
      : options_(std::move(options)),
        router_(options_.policy == RoutePolicy::cheapest_in_slo ? RoutePolicy::prefix_aware : options_.policy) {}

  /// As NodePicker. `now`: seconds on any clock that only goes forward.
  std::optional<PickedNode> pick(const PickQuery& query, const NodeTable& nodes, double now);

  /// Beats are to be heard of when they come: what they say is of then, and of the gateway's own streams of then.
  void hear(const NodeTable& nodes, double now);

  /// What becomes of a stream that was placed. Sets how many sequences of others are beside it.
  void observe(WorkStage stage, NodeWork& work, double now);

  /// What a node says that its prefix cache holds: from then on that is believed, and not what was sent there.
  void kept(const std::string& node, const PrefixNews& news);

  struct Cost {
    double usd = 0.0, joules = 0.0;
  };
  /// What work costs that ends now, power included: the node's seconds that are the work's share where all places are
  /// taken, as Router counts them, at the tariff of now.
  [[nodiscard]] Cost cost(const NodeWork& work) const;

  /// How fast a node is with a model that it serves: as it was seen, or else as it says.
  [[nodiscard]] NodeSpeed speed(const std::string& node, const NodeModel& model) const;

 private:
  static constexpr std::size_t kUnknownMemory = 256;  // as long as no beat tells

  struct Seen {
    NodeIndex index = 0;
    std::string numeric_class = {};
    NodeSpeed claimed = {};
    NodeWatch watch{};
    NodeTerms terms = {};
    std::uint64_t beat = 0;
    std::size_t memory = kUnknownMemory;  // pages of prompts that it can keep
    PrefixHistory history = {};
    bool priced = false;  // it costs something
    bool tells = false;   // what its prefix cache holds
  };

  void learn(const NodeTable& nodes, double now);
  void learn_node(const std::string& name, const NodeState& state, double now);
  std::optional<Route> pick_in(const std::vector<std::string>& regions, RouteRequest request);
  void reprice();
  void set_priced(Seen& seen, const NodePrice& price);
  /// Tells the router how fast a node is.
  void set_speed(const Seen& seen, double now);
  /// … and what it has to do now.
  void set_load(const Seen& seen, double now);

  RoutePickerOptions options_;
  Router router_;
  std::map<std::string, Seen, std::less<>> seen_;
  std::vector<std::string> names_;  // by index
  std::vector<Seen*> pending_;      // that compute prompts of this gateway
  std::set<Seen*> resting_;         // as NodeWatch says, and some that did
  double hoped_ = 0.0;              // when the router was last told of these
  ExpectedAnswer expected_;
  std::uint64_t place_ = 0;  // in the table's changes
  std::int64_t hour_ = 0;    // that prices are of, in quarters
  std::uint64_t picks_ = 0;
  std::int64_t priced_ = 0;                     // nodes that cost something
  std::vector<std::uint64_t> added_, removed_;  // of a history, in the call
};

}  // namespace millrace
