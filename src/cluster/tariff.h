// Tariff: what electricity costs, hour by hour of the local day.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace millrace {

/// Seconds since 1970-01-01T00:00Z. Tariffs go by the sun's time, not by a process's monotonic clock.
using UnixSeconds = std::chrono::duration<double>;

struct Tariff {
  std::string name = "free";
  double utc_offset_hours = 0.0;  // local time less UTC; no daylight saving
  std::array<double, 24> usd_per_kwh =
      {};  // from each full local hour on; may be negative, as prices of spot markets are

  /// $/kWh at this moment.
  [[nodiscard]] double at(UnixSeconds now) const;
  /// Mean over the day, $/kWh.
  [[nodiscard]] double mean() const;
};

/// `tariff,utc_offset_h,h00,…,h23`, one line for each tariff below that header. Error: names `name` and the line: a
/// column missing, a number that is none, an offset beyond a day, a price beyond $100, a name twice.
Result<std::vector<Tariff>> parse_tariffs(std::string_view csv, const std::string& name);

}  // namespace millrace
