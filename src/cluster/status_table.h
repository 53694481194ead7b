// StatusTable: a ClusterView as a table of a terminal, and as JSON. Pure.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "cluster/cluster_view.h"

namespace millrace {

/// {"nodes":[{...}],"gateways":[{...}]}, an object for each row with a member for each column; null: not known. Ages
/// are in seconds; prices are those of the hour of `wall`.
nlohmann::ordered_json status_json(const ClusterView& view, Duration now, UnixSeconds wall);

/// Two tables below each other, each line ended. A row is cut to `width` letters; 0: it is not.
std::string status_text(const ClusterView& view, Duration now, UnixSeconds wall, std::size_t width);

}  // namespace millrace
