// NodeTerms: what the operator says of a node, and the node has no say in: what it costs, whom it may serve.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "cluster/router.h"
#include "cluster/tariff.h"
#include "core/result.h"

namespace millrace {

struct NodeTerms {
  double usd_per_hour = 0.0;  // of the machine, while it works
  double busy_watts = 0.0;
  double idle_watts = 0.0;
  double pue = 1.0;  // power of the site for each watt of the node
  Tariff tariff = {};
  std::string region = {};  // empty: not said
  std::vector<std::string> labels = {};
  bool trusted = false;  // may read prompts of those who ask for trusted nodes only

  /// What it costs to have it work now.
  [[nodiscard]] NodePrice price(UnixSeconds now) const {
    return {.usd_per_hour = usd_per_hour, .watts = busy_watts, .pue = pue, .usd_per_kwh = tariff.at(now)};
  }
};

/// As JSON text, and back. Error: what is wrong in it; unknown keys are errors, so that a misspelt one is noticed.
std::string terms_json(const NodeTerms& terms);
Result<NodeTerms> parse_terms(std::string_view json);

}  // namespace millrace
