#include "eval/bootstrap.h"

#include <algorithm>
#include <vector>

#include "core/philox.h"

namespace millrace {

std::optional<std::pair<double, double>> bootstrap_interval(std::size_t units, const Statistic& statistic) {
  constexpr std::size_t kSamples = 2000;
  if (units < 2) return std::nullopt;
  std::vector<double> values;
  std::vector<std::uint32_t> counts(units);
  for (std::size_t sample = 0; sample < kSamples; ++sample) {
    std::ranges::fill(counts, 0u);
    for (std::size_t draw = 0; draw < units; ++draw) {
      const float at = philox_uniform(sample, 0, draw);
      ++counts[std::min(units - 1, static_cast<std::size_t>(static_cast<double>(at) * static_cast<double>(units)))];
    }
    values.push_back(statistic(counts));
  }
  std::ranges::sort(values);
  return std::pair(values[kSamples * 25 / 1000], values[kSamples * 975 / 1000 - 1]);
}

}  // namespace millrace
