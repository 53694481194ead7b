// The figures of a load test for people and for programs. Pure.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "bench/statistics.h"

namespace millrace::bench {

/// The document of `millrace bench-serve --json`: the keys of the contract of the command line first. Times in seconds;
/// a distribution without samples is null. "goodput" is requests a second within the limits.
nlohmann::ordered_json report_json(const LoadReport& report);

/// The same as a table of a screen, each line ended.
std::string report_text(const LoadReport& report);

/// One request as a line of JSON, without its line break.
std::string record_line(const RequestRecord& record);

}  // namespace millrace::bench
