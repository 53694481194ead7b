#include "eval/svg_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

namespace millrace {

namespace {

constexpr double kWidth = 960, kRight = 30, kTop = 46, kBottom = 52, kRow = 24, kHeight = 230;
constexpr double kPointLeft = 90, kTitleLeft = 20;
constexpr int kMostTicks = 12;      // of an axis
constexpr double kCharacter = 6.8;  // about, of a label
constexpr std::string_view kBlue = "#1f5fa8", kGrey = "#808080", kOrange = "#c65d00", kLine = "#d8d8d8";

/// Names of files may be any bytes, XML is UTF-8.
std::string as_utf8(std::string_view text) {
  using Json = nlohmann::json;
  return Json::parse(Json(text).dump(-1, ' ', false, Json::error_handler_t::replace)).get<std::string>();
}

std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : as_utf8(text)) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        // Control characters are not allowed in XML at all.
        result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return result;
}

/// An axis: values to places in the picture.
class Axis {
 public:
  Axis(double low, double high, double from, double to, bool logarithmic)
      : from_(from), to_(to), logarithmic_(logarithmic) {
    low_ = logarithmic ? std::log10(low) : low;
    high_ = logarithmic ? std::log10(high) : high;
    // Values that differ in their last digits are one value: an axis of theirs would have no room for its ticks.
    const bool one = high - low <= 1e-9 * std::max(std::fabs(low), std::fabs(high));
    const double room = one ? std::max(0.5 * std::fabs(low_), 0.5) : 0.04 * (high_ - low_);
    low_ -= room;
    high_ += room;
  }

  [[nodiscard]] double operator()(double value) const {
    const double at = logarithmic_ ? std::log10(value) : value;
    return from_ + (to_ - from_) * (at - low_) / (high_ - low_);
  }

  /// Round values within the axis, three to ten of them.
  [[nodiscard]] std::vector<double> ticks() const {
    const double rough = (high_ - low_) / 6;
    double step = std::pow(10.0, std::floor(std::log10(rough)));
    for (const double factor : {2.0, 2.5, 2.0}) {  // 1, 2, 5, 10
      if (step < rough) step *= factor;
    }
    // Of a logarithmic axis that spans more than a decade the powers of ten.
    if (logarithmic_ && high_ - low_ > 1.5) step = std::max(1.0, std::round(step));
    std::vector<double> values;
    const double first = std::ceil(low_ / step);
    for (int i = 0; i < kMostTicks; ++i) {  // counted, lest a step that rounds away repeat for ever
      const double at = (first + i) * step;
      if (!(at <= high_)) break;
      values.push_back(logarithmic_ ? std::pow(10.0, at) : at);
    }
    return values;
  }

 private:
  double low_ = 0, high_ = 1, from_, to_;
  bool logarithmic_;
};

class Canvas {
 public:
  void text(double x, double y, std::string_view anchor, std::string_view content, std::string_view more = "") {
    body_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" {}>{}</text>\n", x, y, anchor, more,
                         escaped(content));
  }
  void line(double x1, double y1, double x2, double y2, std::string_view color, double width = 1,
            std::string_view more = "") {
    body_ += fmt::format(
        "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" stroke-width=\"{}\" {}/>\n", x1,
        y1, x2, y2, color, width, more);
  }
  void dot(double x, double y, double radius, std::string_view color) {
    body_ += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\" fill=\"{}\"/>\n", x, y, radius, color);
  }
  void path(std::span<const std::pair<double, double>> places, std::string_view color) {
    body_ += fmt::format("<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\" points=\"", color);
    for (const auto& [x, y] : places) body_ += fmt::format("{:.1f},{:.1f} ", x, y);
    body_ += "\"/>\n";
  }
  [[nodiscard]] const std::string& body() const { return body_; }

 private:
  std::string body_;
};

bool drawable(double value, bool logarithmic) {
  return std::isfinite(value) && (!logarithmic || value > 0);
}

/// From the lowest to the highest of what an axis must show.
struct Extent {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();

  void add(double value, bool logarithmic) {
    if (!drawable(value, logarithmic)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  void add(const Estimate& estimate, bool logarithmic) {
    add(estimate.value, logarithmic);
    if (!estimate.interval) return;
    add(estimate.interval->first, logarithmic);
    add(estimate.interval->second, logarithmic);
  }
  [[nodiscard]] bool empty() const { return low > high; }
};

void draw_estimate(Canvas& canvas, const Axis& axis, const Estimate& estimate, double y, std::string_view color,
                   bool logarithmic) {
  if (!drawable(estimate.value, logarithmic)) return;
  if (estimate.interval && drawable(estimate.interval->first, logarithmic) &&
      drawable(estimate.interval->second, logarithmic)) {
    const double low = axis(estimate.interval->first), high = axis(estimate.interval->second);
    canvas.line(low, y, high, y, color, 1.5);
    for (const double end : {low, high}) canvas.line(end, y - 3, end, y + 3, color, 1.5);
  }
  canvas.dot(axis(estimate.value), y, 3.5, color);
}

/// What the three kinds of marks are, those that occur.
void draw_legend(Canvas& canvas, const IntervalChart& chart, double left, double top) {
  double x = left;
  const auto entry = [&](bool occurs, const std::string& name, std::string_view color, bool tick) {
    if (!occurs) return;
    if (tick) {
      canvas.line(x, top - 14, x, top - 2, color, 2);
    } else {
      canvas.dot(x, top - 8, 3.5, color);
    }
    canvas.text(x + 9, top - 4, "start", name);
    x += 30 + kCharacter * static_cast<double>(name.size());
  };
  entry(true, chart.value_name + " (bar: 95 % interval)", kBlue, false);
  entry(std::ranges::any_of(chart.rows, [](const IntervalRow& row) { return row.reference.has_value(); }),
        chart.reference_name, kGrey, false);
  entry(std::ranges::any_of(chart.rows, [](const IntervalRow& row) { return row.baseline.has_value(); }),
        chart.baseline_name, kOrange, true);
}

/// Draws below `top`; returns the height, 0 where there is nothing to draw.
double draw(Canvas& canvas, const IntervalChart& chart, double top) {
  Extent extent;
  for (const IntervalRow& row : chart.rows) {
    extent.add(row.value, chart.logarithmic);
    if (row.reference) extent.add(*row.reference, chart.logarithmic);
    if (row.baseline) extent.add(*row.baseline, chart.logarithmic);
  }
  if (extent.empty()) return 0;
  double left = 120;  // room for the longest label, within reason
  for (const IntervalRow& row : chart.rows) {
    left = std::max(left, std::min(kTitleLeft + kCharacter * static_cast<double>(row.label.size()), 0.6 * kWidth));
  }
  const double above = kTop + 20, bottom = top + above + kRow * static_cast<double>(chart.rows.size());
  const Axis axis(extent.low, extent.high, left, kWidth - kRight, chart.logarithmic);
  canvas.text(kTitleLeft, top + 22, "start", chart.title, "font-weight=\"bold\"");
  draw_legend(canvas, chart, left, top + above - 6);
  for (const double tick : axis.ticks()) {
    canvas.line(axis(tick), top + above, axis(tick), bottom, kLine);
    canvas.text(axis(tick), bottom + 16, "middle", fmt::format("{:.4g}", tick));
  }
  canvas.line(left, bottom, kWidth - kRight, bottom, "#000000");
  canvas.text((left + kWidth - kRight) / 2, bottom + 36, "middle", chart.axis);
  double y = top + above + kRow / 2;
  for (const IntervalRow& row : chart.rows) {
    canvas.text(left - 12, y + 4, "end", row.label);
    const double apart = row.reference ? 4.5 : 0;
    if (row.reference) draw_estimate(canvas, axis, *row.reference, y + apart, kGrey, chart.logarithmic);
    draw_estimate(canvas, axis, row.value, y - apart, kBlue, chart.logarithmic);
    if (row.baseline && drawable(*row.baseline, chart.logarithmic)) {
      canvas.line(axis(*row.baseline), y - 8, axis(*row.baseline), y + 8, kOrange, 2);
    }
    y += kRow;
  }
  return bottom + kBottom - top;
}

double draw(Canvas& canvas, const PointChart& chart, double top) {
  Extent across, along;
  std::vector<std::pair<double, double>> points;
  for (const auto& [x, y] : chart.points) {
    if (!drawable(x, false) || !drawable(y, chart.logarithmic)) continue;
    points.emplace_back(x, y);
    across.add(x, false);
    along.add(y, chart.logarithmic);
  }
  if (points.empty()) return 0;
  for (const auto& [height, label] : chart.marks) along.add(height, chart.logarithmic);
  const double above = kTop, bottom = top + above + kHeight, right = kWidth - kRight;
  const Axis x_axis(across.low, across.high, kPointLeft, right, false);
  const Axis y_axis(along.low, along.high, bottom, top + above, chart.logarithmic);
  canvas.text(kTitleLeft, top + 22, "start", chart.title, "font-weight=\"bold\"");
  for (const double tick : y_axis.ticks()) {
    canvas.line(kPointLeft, y_axis(tick), right, y_axis(tick), kLine);
    canvas.text(kPointLeft - 8, y_axis(tick) + 4, "end", fmt::format("{:.4g}", tick));
  }
  for (const double tick : x_axis.ticks()) {
    canvas.line(x_axis(tick), bottom, x_axis(tick), bottom + 4, "#000000");
    canvas.text(x_axis(tick), bottom + 18, "middle", fmt::format("{:.4g}", tick));
  }
  canvas.line(kPointLeft, bottom, right, bottom, "#000000");
  canvas.line(kPointLeft, top + above, kPointLeft, bottom, "#000000");
  canvas.text((kPointLeft + right) / 2, bottom + 38, "middle", chart.x_axis);
  const double middle = (top + above + bottom) / 2;
  canvas.text(24, middle, "middle", chart.y_axis, fmt::format("transform=\"rotate(-90 24 {:.1f})\"", middle));
  for (const auto& [height, label] : chart.marks) {
    if (!drawable(height, chart.logarithmic)) continue;
    canvas.line(kPointLeft, y_axis(height), right, y_axis(height), kOrange, 1.5, "stroke-dasharray=\"5 4\"");
    canvas.text(kPointLeft + 8, y_axis(height) - 5, "start", label, fmt::format("fill=\"{}\"", kOrange));
  }
  for (auto& [x, y] : points) {
    x = x_axis(x);
    y = y_axis(y);
  }
  if (chart.joined) {
    canvas.path(points, kBlue);
  } else {
    for (const auto& [x, y] : points) canvas.dot(x, y, 3, kBlue);
  }
  return above + kHeight + kBottom;
}

}  // namespace

std::string draw_svg(const std::string& title, std::span<const Chart> charts) {
  Canvas canvas;
  canvas.text(kTitleLeft, 26, "start", title, "font-size=\"15\"");
  double height = 36;
  for (const Chart& chart : charts) {
    height += std::visit([&](const auto& each) { return draw(canvas, each, height); }, chart);
  }
  return fmt::format(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1:.0f}\" viewBox=\"0 0 {0} {1:.0f}\" "
      "font-family=\"sans-serif\" font-size=\"12\" fill=\"#000000\">\n"
      "<rect width=\"{0}\" height=\"{1:.0f}\" fill=\"#ffffff\"/>\n{2}</svg>\n",
      kWidth, height, canvas.body());
}

}  // namespace millrace
