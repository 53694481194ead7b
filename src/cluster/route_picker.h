// RoutePicker: the router in the place of a NodePicker: what the gateway knows of nodes, told to it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cluster/gateway_streams.h"
#include "cluster/router.h"

namespace millrace {

class RoutePicker {
 public:
  /// For streams of this model; what else nodes serve does not matter.
  explicit RoutePicker(std::string model, RoutePolicy policy = RoutePolicy::cheapest_in_slo)
      : model_(std::move(model)), router_(policy) {}

  /// As NodePicker. `now`: seconds on any clock that only goes forward.
  std::optional<std::string> pick(const PickQuery& query, const NodeTable& nodes, double now);

 private:
  struct Seen {
    NodeIndex index = 0;
    std::uint64_t revision = 0, beat = 0;
    NodeHealth health = NodeHealth::dead;
  };

  void learn(const NodeTable& nodes, double now);

  std::string model_;
  Router router_;
  std::map<std::string, Seen, std::less<>> seen_;
  std::vector<std::string> names_;  // by index
  std::uint64_t picks_ = 0;
};

}  // namespace millrace
