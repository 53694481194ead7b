// Intervals of figures whose distribution nobody knows, by resampling.
// Source: Efron, "Bootstrap methods: another look at the jackknife" (1979); the percentile interval.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace millrace {

/// How often each unit occurs in a sample.
using Sample = std::span<const std::uint32_t>;
using Statistic = std::function<double(Sample counts)>;
using Interval = std::optional<std::pair<double, double>>;

/// The 95 % interval of a statistic over `units` independent units (documents, windows of a text): from the 2.5th to
/// the 97.5th percentile of 2,000 samples, always the same ones. Paired: compare two models within one statistic. None
/// with fewer than two units; with few it is too narrow.
Interval bootstrap_interval(std::size_t units, const Statistic& statistic);

/// The same for several statistics, in their order. The samples are drawn once.
std::vector<Interval> bootstrap_intervals(std::size_t units, std::span<const Statistic> statistics);

}  // namespace millrace
