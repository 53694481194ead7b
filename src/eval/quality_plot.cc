#include "eval/quality_plot.h"

#include <algorithm>
#include <cmath>

namespace millrace {

namespace {

/// 100 percentiles, and finer towards the end, where what breaks a model shows.
PointChart divergence_chart(std::span<const WindowQuality> windows, const Comparison& comparison) {
  std::vector<float> sorted;
  for (const WindowQuality& window : windows) {
    sorted.insert(sorted.end(), window.divergence.begin(), window.divergence.end());
  }
  std::ranges::sort(sorted);
  PointChart chart{.title = "KL divergence from the model as stored, over the positions of the text",
                   .x_axis = "positions, percentile",
                   .y_axis = "KL divergence, nats",
                   .logarithmic = true,
                   .joined = true,
                   .points = {}};
  const auto add = [&](double percentile) {
    const auto at = static_cast<std::size_t>(percentile / 100 * static_cast<double>(sorted.size()));
    chart.points.emplace_back(percentile, sorted[std::min(at, sorted.size() - 1)]);
  };
  for (int percentile = 1; percentile < 99; ++percentile) add(percentile);
  for (int tenth = 990; tenth <= 1000; ++tenth) add(tenth / 10.0);
  chart.marks = {{comparison.kl_mean.value, fmt::format("mean {:.2e}", comparison.kl_mean.value)},
                 {comparison.kl_p99.value, fmt::format("p99 {:.2e}", comparison.kl_p99.value)}};
  return chart;
}

PointChart window_chart(std::span<const WindowQuality> windows, const TextQuality& quality) {
  const bool compared = quality.comparison.has_value();
  PointChart chart{
      .title = compared ? "Perplexity of each window, beside that of the model as stored" : "Perplexity of each window",
      .x_axis = "window of the text",
      .y_axis = compared ? "ratio of perplexities" : "perplexity",
      .points = {}};
  for (std::size_t w = 0; w < windows.size(); ++w) {
    const WindowQuality& window = windows[w];
    const double nll = window.nll - (compared ? window.reference_nll : 0.0);
    chart.points.emplace_back(static_cast<double>(w + 1), std::exp(nll / static_cast<double>(window.tokens)));
  }
  const double all = compared ? quality.comparison->perplexity_ratio.value : quality.perplexity.value;
  chart.marks = {{all, fmt::format("all {:.5g}", all)}};
  return chart;
}

Estimate scaled(const Estimate& estimate, double factor) {
  Estimate result{.value = factor * estimate.value};
  if (estimate.interval) result.interval = {factor * estimate.interval->first, factor * estimate.interval->second};
  return result;
}

}  // namespace

std::vector<Chart> charts_of(std::span<const WindowQuality> windows, const TextQuality& quality) {
  std::vector<Chart> charts;
  if (quality.comparison) charts.emplace_back(divergence_chart(windows, *quality.comparison));
  charts.emplace_back(window_chart(windows, quality));
  return charts;
}

std::vector<Chart> charts_of(std::span<const TaskFigure> figures) {
  IntervalChart shares{.title = "Tasks: documents that are right", .axis = "documents, %", .rows = {}};
  IntervalChart perplexities{
      .title = "Tasks: perplexity", .axis = "perplexity of a document", .logarithmic = true, .rows = {}};
  for (const TaskFigure& figure : figures) {
    const bool perplexity = figure.metric == "perplexity";
    const double factor = perplexity ? 1.0 : 100.0;
    IntervalRow row{.label = fmt::format("{} {} (n = {})", figure.task, figure.metric, figure.documents),
                    .value = scaled(figure.value, factor),
                    .baseline = factor * figure.baseline};
    if (figure.reference) row.reference = scaled(*figure.reference, factor);
    (perplexity ? perplexities : shares).rows.push_back(std::move(row));
  }
  return {std::move(shares), std::move(perplexities)};
}

}  // namespace millrace
