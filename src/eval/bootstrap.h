// Intervals of figures whose distribution nobody knows, by resampling.
// Source: Efron, "Bootstrap methods: another look at the jackknife" (1979); the percentile interval.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <utility>

namespace millrace {

/// `statistic` of a sample in which unit i occurs counts[i] times.
using Statistic = std::function<double(std::span<const std::uint32_t> counts)>;

/// The 95 % interval of a statistic over `units` independent units (documents, windows of a text): from the 2.5th to
/// the 97.5th percentile of 2,000 samples, always the same ones. Paired: compare two models within one statistic. None
/// with fewer than two units; with few it is too narrow.
std::optional<std::pair<double, double>> bootstrap_interval(std::size_t units, const Statistic& statistic);

}  // namespace millrace
