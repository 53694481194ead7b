// RoutePicker: the router in the place of a NodePicker: what the gateway knows of nodes, told to it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cluster/gateway_streams.h"
#include "cluster/router.h"

namespace millrace {

class RoutePicker {
 public:
  explicit RoutePicker(RoutePolicy policy = RoutePolicy::cheapest_in_slo) : router_(policy) {}

  /// As NodePicker. `now`: seconds on any clock that only goes forward.
  std::optional<std::string> pick(const PickQuery& query, const NodeTable& nodes, double now);

 private:
  struct Seen {
    NodeIndex index = 0;
    std::uint64_t incarnation = 0, beat = 0;
    NodeHealth health = NodeHealth::dead;
    std::size_t models = 0;
  };

  void learn(const NodeTable& nodes, double now);

  Router router_;
  std::map<std::string, Seen, std::less<>> seen_;
  std::vector<std::string> names_;  // by index
  std::uint64_t picks_ = 0;
};

}  // namespace millrace
