// Pictures are well formed and have in them what they should show.
#include "eval/svg_plot.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "eval/quality_plot.h"

namespace millrace {
namespace {

/// Of each element its end, of each attribute its quotes, and no character that must be escaped.
::testing::AssertionResult well_formed(const std::string& xml) {
  std::vector<std::string> open;
  for (std::size_t at = 0; at < xml.size();) {
    if (xml[at] != '<') {
      if (xml[at] == '&' && xml.substr(at, 8).find(';') == std::string::npos) {
        return ::testing::AssertionFailure() << "a bare & at " << at;
      }
      if (xml[at] == '>') return ::testing::AssertionFailure() << "a bare > at " << at;
      ++at;
      continue;
    }
    const std::size_t end = xml.find('>', at);
    if (end == std::string::npos) return ::testing::AssertionFailure() << "no end of " << xml.substr(at, 40);
    const std::string tag = xml.substr(at + 1, end - at - 1);
    at = end + 1;
    if (tag.find('<') != std::string::npos || std::ranges::count(tag, '"') % 2 != 0) {
      return ::testing::AssertionFailure() << "<" << tag << ">";
    }
    if (tag.starts_with('?') || tag.ends_with('/')) continue;
    if (!tag.starts_with('/')) {
      open.push_back(tag.substr(0, tag.find(' ')));
    } else if (open.empty() || open.back() != tag.substr(1)) {
      return ::testing::AssertionFailure() << "<" << tag << "> ends nothing";
    } else {
      open.pop_back();
    }
  }
  if (!open.empty()) return ::testing::AssertionFailure() << open.back() << " does not end";
  return ::testing::AssertionSuccess();
}

std::size_t count_of(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(SvgPlot, TasksHaveADotForEachFigure) {
  const Estimate value{.value = 0.6, .interval = std::pair(0.5, 0.7)};
  const std::vector<TaskFigure> figures{
      {.task = "a <&> \"b\"", .metric = "acc", .documents = 10, .value = value, .reference = value, .baseline = 0.5},
      {.task = "c", .metric = "acc", .documents = 1, .value = {.value = 1.0}, .baseline = 0.5}};
  const std::string svg = draw_svg("a & b", charts_of(figures));
  EXPECT_TRUE(well_formed(svg)) << svg;
  EXPECT_NE(svg.find("a &lt;&amp;&gt; &quot;b&quot; acc (n = 10)"), std::string::npos);
  EXPECT_NE(svg.find("documents, %"), std::string::npos);
  EXPECT_EQ(count_of(svg, "<circle"), 3u + 2u);  // and two in the legend
  EXPECT_EQ(svg.find("perplexity"), std::string::npos);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
}

TEST(SvgPlot, ATextHasItsDivergence) {
  std::vector<WindowQuality> windows;
  for (int w = 0; w < 5; ++w) {
    windows.push_back({.tokens = 100, .nll = 300.0 + w, .reference_nll = 299.0, .agreeing = 90, .divergence = {}});
    for (int p = 0; p < 100; ++p) windows.back().divergence.push_back(static_cast<float>(p) * 1e-4f);  // 0 among them
  }
  const std::string svg = draw_svg("t", charts_of(windows, summarize(windows, true)));
  EXPECT_TRUE(well_formed(svg)) << svg;
  EXPECT_EQ(count_of(svg, "<polyline"), 1u);
  EXPECT_EQ(count_of(svg, "<circle"), 5u);
  EXPECT_NE(svg.find("KL divergence, nats"), std::string::npos);
  EXPECT_NE(svg.find("ratio of perplexities"), std::string::npos);
  const std::string alone = draw_svg("t", charts_of(windows, summarize(windows, false)));
  EXPECT_TRUE(well_formed(alone));
  EXPECT_EQ(count_of(alone, "<polyline"), 0u);
}

TEST(SvgPlot, ValuesThatDifferInTheirLastDigitAreOne) {
  for (const double low : {0.7, 1e-3, 1e12, -5.0}) {
    const double high = std::nextafter(low, 1e300);
    const std::vector<IntervalRow> rows{{.label = "low", .value = {.value = low}, .baseline = high}};
    for (const bool logarithmic : {false, true}) {
      const std::vector<Chart> charts{
          IntervalChart{.title = "rows", .axis = "", .logarithmic = logarithmic, .rows = rows},
          PointChart{.title = "points",
                     .x_axis = "",
                     .y_axis = "",
                     .logarithmic = logarithmic,
                     .points = {{low, low}, {high, high}}}};
      const std::string svg = draw_svg("t", charts);
      EXPECT_TRUE(well_formed(svg));
      EXPECT_LT(count_of(svg, "<line"), 60u) << low;
      EXPECT_LT(count_of(svg, "<text"), 60u) << low;
      EXPECT_EQ(svg.find("nan"), std::string::npos) << svg;
    }
  }
}

TEST(SvgPlot, AxesHaveTheirTicks) {
  const std::vector<Chart> charts{
      PointChart{.title = "t", .x_axis = "", .y_axis = "", .logarithmic = true, .points = {{-1.0, 1e-4}, {1.0, 1e3}}}};
  const std::string svg = draw_svg("t", charts);
  for (const char* tick : {">-1<", ">-0.5<", ">0<", ">0.5<", ">1<", ">0.01<", ">100<"}) {
    EXPECT_NE(svg.find(tick), std::string::npos) << tick;
  }
}

TEST(SvgPlot, TextThatIsNotUtf8IsReplaced) {
  EXPECT_NE(draw_svg("a\xff\xc3\xa9", {}).find("a\xef\xbf\xbd\xc3\xa9<"), std::string::npos);
}

TEST(SvgPlot, WhatCannotBeDrawnIsLeftOut) {
  const double inf = std::numeric_limits<double>::infinity();
  const std::vector<Chart> charts{
      PointChart{.title = "nothing", .x_axis = "", .y_axis = "", .logarithmic = true, .points = {{1, 0}, {2, -1}}},
      PointChart{.title = "one", .x_axis = "", .y_axis = "", .points = {{1, 5}, {2, inf}, {3, std::nan("")}}},
      IntervalChart{.title = "empty", .axis = "", .rows = {}}};
  const std::string svg = draw_svg("t", charts);
  EXPECT_TRUE(well_formed(svg));
  EXPECT_EQ(svg.find("nothing"), std::string::npos);
  EXPECT_EQ(svg.find("empty"), std::string::npos);
  EXPECT_EQ(count_of(svg, "<circle"), 1u);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
}

}  // namespace
}  // namespace millrace
