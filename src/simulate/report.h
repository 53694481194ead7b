// What a simulation found, for people and for programs.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "simulate/simulation.h"

namespace millrace {

/// "round_robin", "least_loaded", "prefix_aware", "cheapest_in_slo", and back.
const char* policy_name(RoutePolicy policy);
std::optional<RoutePolicy> find_policy(std::string_view name);

/// A row for each result, and below them what batch work cost.
std::string sim_table(std::span<const SimResult> results);

/// One object for a result.
nlohmann::ordered_json sim_json(const SimResult& result);

}  // namespace millrace
