#include "eval/bootstrap.h"

#include <algorithm>

#include "core/philox.h"

namespace millrace {

Interval bootstrap_interval(std::size_t units, const Statistic& statistic) {
  return bootstrap_intervals(units, std::span(&statistic, 1)).front();
}

std::vector<Interval> bootstrap_intervals(std::size_t units, std::span<const Statistic> statistics) {
  constexpr std::size_t kSamples = 2000;
  std::vector<Interval> intervals(statistics.size());
  if (units < 2) return intervals;
  std::vector<std::vector<double>> values(statistics.size());
  std::vector<std::uint32_t> counts(units);
  for (std::size_t sample = 0; sample < kSamples; ++sample) {
    std::ranges::fill(counts, 0u);
    for (std::size_t draw = 0; draw < units; ++draw) {
      const float at = philox_uniform(sample, 0, draw);
      ++counts[std::min(units - 1, static_cast<std::size_t>(static_cast<double>(at) * static_cast<double>(units)))];
    }
    for (std::size_t s = 0; s < statistics.size(); ++s) values[s].push_back(statistics[s](counts));
  }
  for (std::size_t s = 0; s < statistics.size(); ++s) {
    std::ranges::sort(values[s]);
    intervals[s] = std::pair(values[s][kSamples * 25 / 1000], values[s][kSamples * 975 / 1000 - 1]);
  }
  return intervals;
}

}  // namespace millrace
