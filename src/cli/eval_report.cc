#include "cli/eval_report.h"

#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "eval/quality_plot.h"

namespace millrace::cli {

namespace {

using Json = nlohmann::ordered_json;

Json interval_json(const Estimate& estimate) {
  if (!estimate.interval) return nullptr;
  return {estimate.interval->first, estimate.interval->second};
}

/// A model as stored is its own reference; a recipe without one is compared with nothing.
void add_text(Json& document, const TextQuality& quality, bool lossless) {
  document["tokens"] = quality.tokens;
  document["windows"] = quality.windows;
  document["perplexity"] = quality.perplexity.value;
  document["mean_nll"] = quality.mean_nll;
  Json intervals{{"perplexity", interval_json(quality.perplexity)}};
  const Comparison itself{.reference_perplexity = quality.perplexity,
                          .perplexity_ratio = {1.0},
                          .kl_mean = {0.0},
                          .kl_p99 = {0.0},
                          .top1_agreement = {1.0}};
  const bool compared = quality.comparison.has_value() || lossless;
  const Comparison comparison = quality.comparison.value_or(itself);
  const auto add = [&](const char* name, const Estimate& estimate) {
    if (!compared) return;
    document[name] = estimate.value;
    intervals[name] = interval_json(estimate);
  };
  add("reference_perplexity", comparison.reference_perplexity);
  add("perplexity_ratio", comparison.perplexity_ratio);
  add("kl_mean", comparison.kl_mean);
  add("kl_p99", comparison.kl_p99);
  add("top1_agreement", comparison.top1_agreement);
  document["ci95"] = intervals;
}

Json task_json(const TaskFigure& figure, bool lossless) {
  Json json{{"task", figure.task},
            {"documents", figure.documents},
            {"metric", figure.metric},
            {"value", figure.value.value},
            {"ci95", interval_json(figure.value)},
            {"reference", nullptr},
            {"reference_ci95", nullptr},
            {"difference", nullptr},
            {"difference_ci95", nullptr},
            {"baseline", figure.baseline}};
  if (lossless) {
    json["reference"] = figure.value.value;
    json["reference_ci95"] = interval_json(figure.value);
    json["difference"] = 0.0;
  } else if (figure.reference) {
    json["reference"] = figure.reference->value;
    json["reference_ci95"] = interval_json(*figure.reference);
    json["difference"] = figure.difference->value;
    json["difference_ci95"] = interval_json(*figure.difference);
  }
  return json;
}

std::string interval_text(const Estimate& estimate, double unit = 1.0, const char* without = "the text is one window") {
  if (!estimate.interval) return fmt::format("no interval: {}", without);
  return fmt::format("95 % interval {:.6g} to {:.6g}", unit * estimate.interval->first,
                     unit * estimate.interval->second);
}

void print_quality(const TextQuality& quality) {
  fmt::print("perplexity             {:.4f} ({}) over {} tokens\n", quality.perplexity.value,
             interval_text(quality.perplexity), quality.tokens);
  if (!quality.comparison) return;
  const Comparison& c = *quality.comparison;
  fmt::print("as stored              {:.4f} ({})\n", c.reference_perplexity.value,
             interval_text(c.reference_perplexity));
  fmt::print("ratio                  {:.5f} ({})\n", c.perplexity_ratio.value, interval_text(c.perplexity_ratio));
  fmt::print("KL divergence, mean    {:.3e} nats ({})\n", c.kl_mean.value, interval_text(c.kl_mean));
  fmt::print("KL divergence, p99     {:.3e} nats ({})\n", c.kl_p99.value, interval_text(c.kl_p99));
  fmt::print("same most likely token {:.2f} % ({})\n", 100 * c.top1_agreement.value,
             interval_text(c.top1_agreement, 100.0));
}

void print_figure(const TaskFigure& figure) {
  const bool share = figure.metric != "perplexity";
  const double unit = share ? 100.0 : 1.0;
  const char* sign = share ? " %" : "";
  constexpr const char* kOne = "one document";
  fmt::print("{} {}: {:.5g}{} ({}) over {} documents; baseline {:.5g}{}\n", figure.task, figure.metric,
             unit * figure.value.value, sign, interval_text(figure.value, unit, kOne), figure.documents,
             unit * figure.baseline, sign);
  if (!figure.reference) return;
  fmt::print("    as stored {:.5g}{}, difference {:+.5g}{} ({})\n", unit * figure.reference->value, sign,
             unit * figure.difference->value, share ? " points" : "", interval_text(*figure.difference, unit, kOne));
}

}  // namespace

void print_json(const EvalReport& report) {
  Json document = Json::object();
  if (report.text) add_text(document, *report.text, report.lossless);
  if (report.skipped.all > 0) document["kept_inputs"] = report.skipped.kept / report.skipped.all;
  if (report.read.all > 0) document["read_kv"] = report.read.read / report.read.all;
  if (!report.tasks.empty()) {
    document["tasks"] = Json::array();
    for (const TaskFigure& figure : report.tasks) document["tasks"].push_back(task_json(figure, report.lossless));
  }
  // Tasks are named after files, whose names may be any bytes.
  std::printf("%s\n", document.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
}

void print_text(const EvalReport& report) {
  if (report.text) print_quality(*report.text);
  if (report.skipped.all > 0) {
    fmt::print("inputs kept            {:.2f} % of the layers that leave out some, by weights\n",
               100 * report.skipped.kept / report.skipped.all);
  }
  if (report.read.all > 0) {
    fmt::print("keys and values read   {:.2f} % of what rows see, with what chooses them\n",
               100 * report.read.read / report.read.all);
  }
  for (const TaskFigure& figure : report.tasks) print_figure(figure);
}

Status write_plot(const EvalReport& report, const std::string& path) {
  std::vector<Chart> charts;
  const auto add = [&](std::vector<Chart> more) {
    charts.insert(charts.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
  };
  if (report.text) add(charts_of(report.windows, *report.text));
  if (!report.tasks.empty()) add(charts_of(report.tasks));
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << draw_svg("millrace eval: " + report.model, charts);
  file.close();
  if (!file) return fail("cannot write {}: free space or name another file with --plot", path);
  return Ok{};
}

}  // namespace millrace::cli
