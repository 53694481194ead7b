// A plain SVG picture: charts below each other on white, with axes and what they count in. Nothing outside of the file
// is needed to show it.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "eval/text_quality.h"

namespace millrace {

/// A figure with its interval, and what stands beside it.
struct IntervalRow {
  std::string label;
  Estimate value;
  std::optional<Estimate> reference = {};
  std::optional<double> baseline = {};
};

/// Rows below each other over one axis.
struct IntervalChart {
  std::string title, axis;
  bool logarithmic = false;  // then values must be above 0
  std::vector<IntervalRow> rows;
  std::string value_name = "this run", reference_name = "as stored", baseline_name = "baseline";  // the legend
};

/// Points (x, y), joined by a line or each alone, and marked heights.
struct PointChart {
  std::string title, x_axis, y_axis;
  bool logarithmic = false;  // y; points that are not above 0 are left out
  bool joined = false;
  std::vector<std::pair<double, double>> points;
  std::vector<std::pair<double, std::string>> marks = {};
};

using Chart = std::variant<IntervalChart, PointChart>;

/// The text of an SVG file. Charts without rows or points that can be drawn are left out.
std::string draw_svg(const std::string& title, std::span<const Chart> charts);

}  // namespace millrace
