#include "cli/calibrate_target.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>

#include "core/mapped_file.h"
#include "eval/reference_file.h"
#include "eval/text_quality.h"
#include "runtime/run_tokens.h"

namespace millrace::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::int64_t kStepRows = 128;
constexpr std::size_t kCurveWindows = 8;  // of the text on which groups are measured by themselves

/// Windows, and what the model without skipping says of them, in a file that goes with the object.
class Judge {
 public:
  static Result<Judge> create(ModelRunner& runner, std::vector<TokenWindow> windows, const std::string& file) {
    std::error_code ignored;
    std::filesystem::remove(file, ignored);
    MILLRACE_TRY(ReferenceFile reference, ReferenceFile::open(std::filesystem::absolute(file), "calibrate",
                                                              static_cast<std::int32_t>(runner.config().vocab)));
    Judge judge(runner, std::move(windows), std::move(reference), file);
    MILLRACE_CHECK_OK(write_reference(runner, judge.windows_, judge.reference_, progress_bar("reference")));
    judge.reference_.finish();
    return judge;
  }
  Judge(Judge&& other) noexcept
      : runner_(other.runner_),
        windows_(std::move(other.windows_)),
        reference_(std::move(other.reference_)),
        file_(std::exchange(other.file_, {})) {}
  Judge(const Judge&) = delete;
  Judge& operator=(const Judge&) = delete;
  Judge& operator=(Judge&&) = delete;
  ~Judge() {
    std::error_code ignored;
    if (!file_.empty()) std::filesystem::remove(file_, ignored);
  }

  Result<Divergence> divergence() {
    MILLRACE_TRY(const std::vector<WindowQuality> judged, judge_windows(*runner_, windows_, &reference_, {}));
    const Estimate mean = mean_divergence(judged);
    return Divergence{mean.value, mean.interval};
  }

  [[nodiscard]] std::int64_t tokens() const {
    std::int64_t count = 0;
    for (const TokenWindow& window : windows_) count += static_cast<std::int64_t>(window.size());
    return count;
  }

 private:
  Judge(ModelRunner& runner, std::vector<TokenWindow> windows, ReferenceFile reference, std::string file)
      : runner_(&runner), windows_(std::move(windows)), reference_(std::move(reference)), file_(std::move(file)) {}

  ModelRunner* runner_;
  std::vector<TokenWindow> windows_;
  ReferenceFile reference_;
  std::string file_;
};

/// As many of them as wanted, from all over the text.
std::vector<TokenWindow> spread(std::span<const TokenWindow> windows, std::size_t wanted) {
  std::vector<TokenWindow> some;
  const std::size_t count = std::min(wanted, windows.size());
  for (std::size_t i = 0; i < count; ++i) some.push_back(windows[i * windows.size() / count]);
  return some;
}

std::vector<std::optional<float>> thresholds_of(const std::vector<MagnitudeQuantiles>& magnitudes,
                                                const Sparsities& sparsities) {
  std::vector<std::optional<float>> thresholds(sparsities.size());
  for (std::size_t group = 0; group < sparsities.size(); ++group) {
    if (sparsities[group] > 0.0) thresholds[group] = magnitude_at(magnitudes[group], sparsities[group]);
  }
  return thresholds;
}

/// A float as the shortest number that is read as the same float.
double shortest(float value) {
  return std::stod(fmt::format("{}", value));
}

Result<std::string> recipe_text(const std::string& file, const TargetFlags& target, const TargetReport& report) {
  Json recipe{{"millrace_recipe", 1}};
  if (!file.empty()) {
    MILLRACE_TRY(const std::string text, read_text_file(file));
    recipe = Json::parse(text, nullptr, false);  // which load_options() has understood
  }
  Json thresholds = Json::object();
  for (std::size_t group = 0; group < report.groups.size(); ++group) {
    if (!report.thresholds[group]) continue;
    for (const std::string& layer : report.groups[group].layers)
      thresholds[layer] = shortest(*report.thresholds[group]);
  }
  recipe["activations"] = {{"method", target.method}, {"thresholds", std::move(thresholds)}};
  return recipe.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

Result<LoadOptions> checked_options(const ModelFlags& flags) {
  MILLRACE_TRY(LoadOptions options, load_options(flags, kStepRows));
  if (options.recipe.activations || options.recipe.neurons)
    return fail(
        "thresholds are looked for with the model that computes everything: give a recipe without \"activations\"");
  options.limits = {.max_rows = kStepRows, .max_logit_rows = kStepRows};
  options.max_model_len = kCalibrationWindow + 1;
  MILLRACE_TRY(const ModelPlan plan, plan_model(options));
  if (!plan.backend->host_memory()) return fail("activations are looked at on the cpu alone: give --device cpu");
  return options;
}

/// The level of the found sparsities, on the held-out windows.
Result<FoundSparsities> search(ThresholdBackend& backend, const std::vector<MagnitudeQuantiles>& magnitudes,
                               Judge& curves_judge, Judge& held_out, const TargetFlags& target) {
  const std::size_t groups = magnitudes.size();
  const auto measured_by = [&](Judge& judge) {
    return [&](const Sparsities& sparsities) {
      backend.set(thresholds_of(magnitudes, sparsities));
      return judge.divergence();
    };
  };
  const auto counting = [](const char* label, std::size_t steps) {
    return [bar = progress_bar(label), done = std::int64_t{0}, steps]() mutable {
      bar(++done, static_cast<std::int64_t>(steps));
    };
  };
  const auto level_step = counting("searching", kLevelSteps);
  if (target.uniform) {
    return highest_level(
        target.target_kl, [&](double level) { return Sparsities(groups, level); }, measured_by(held_out), level_step);
  }
  MILLRACE_TRY(const std::vector<LossCurve> curves, measure_curves(groups, target.target_kl, measured_by(curves_judge),
                                                                   counting("layers", groups * (kSparsitySteps - 1))));
  std::vector<std::size_t> bytes;
  for (const ThresholdBackend::Group& group : backend.groups()) bytes.push_back(group.bytes);
  const GreedyAllocation allocation(bytes, curves);
  return highest_level(
      target.target_kl, [&](double level) { return allocation.at(level); }, measured_by(held_out), level_step);
}

}  // namespace

double TargetReport::kept() const {
  double kept = 0.0, all = 0.0;
  for (std::size_t group = 0; group < groups.size(); ++group) {
    const double weights = static_cast<double>(groups[group].inputs * groups[group].outputs);
    const ThresholdBackend::Counts& count = counts[group];
    kept += weights * (count.all == 0 ? 1.0 : static_cast<double>(count.kept) / static_cast<double>(count.all));
    all += weights;
  }
  return kept / all;
}

Result<TargetReport> calibrate_to_target(const ModelFlags& flags, const CalibrationText& text,
                                         const TargetFlags& target, const std::string& scratch) {
  static const std::map<std::string, SkipMethod> kMethods{
      {"teal", SkipMethod::teal}, {"down", SkipMethod::down}, {"cats", SkipMethod::cats}};
  MILLRACE_TRY(LoadOptions options, checked_options(flags));
  ThresholdBackend* backend = nullptr;
  options.wrap_backend = [&](std::unique_ptr<Backend> inner) -> std::unique_ptr<Backend> {
    auto wrapped = std::make_unique<ThresholdBackend>(std::move(inner), kMethods.at(target.method));
    backend = wrapped.get();
    return wrapped;
  };
  MILLRACE_TRY(const LoadedModel model, load(options));
  ModelRunner& runner = *model.runner;
  if (backend->groups().empty()) return fail("{} has no layer that \"{}\" is for", model.path, target.method);
  if (rows_for_policy(runner) == RowsAre::prompt)
    return fail("the recipe says what prompts read, and a text would be read as one: give it without \"prefill\"");
  MILLRACE_TRY(const std::vector<TokenWindow> windows, calibration_windows(model, text));
  if (windows.size() < 4)
    return fail("{} has {} windows of {} tokens: at least 4 are needed, one of which is held out", text.file.string(),
                windows.size(), kCalibrationWindow);
  for (const TokenWindow& window : windows) MILLRACE_CHECK_OK(check_tokens(runner, window));

  TargetReport report;
  report.groups = backend->groups();
  const std::size_t seen = windows.size() * 3 / 4;
  const auto progress = progress_bar("calibrating");
  backend->watch(true);
  for (std::size_t w = 0; w < seen; ++w) {
    MILLRACE_CHECK_OK(
        run_tokens(runner, windows[w], rows_for_policy(runner), [](std::int64_t, std::span<const float>) {}));
    report.tokens += static_cast<std::int64_t>(windows[w].size());
    progress(static_cast<std::int64_t>(w) + 1, static_cast<std::int64_t>(seen));
  }
  backend->watch(false);
  std::vector<MagnitudeQuantiles> magnitudes;
  for (std::size_t group = 0; group < report.groups.size(); ++group) magnitudes.push_back(backend->magnitudes(group));

  MILLRACE_TRY(Judge curves,
               Judge::create(runner, spread(std::span(windows).first(seen), kCurveWindows), scratch + ".curves"));
  MILLRACE_TRY(Judge held_out,
               Judge::create(runner, {windows.begin() + static_cast<std::ptrdiff_t>(seen), windows.end()},
                             scratch + ".held_out"));
  MILLRACE_TRY(report.found, search(*backend, magnitudes, curves, held_out, target));
  // Once more, for the shares that are kept; the last level that was tried need not be the one that was found.
  report.thresholds = thresholds_of(magnitudes, report.found.sparsities);
  backend->set(report.thresholds);
  MILLRACE_TRY(report.found.divergence, held_out.divergence());
  report.counts = backend->counts();
  report.held_out_tokens = held_out.tokens();
  MILLRACE_TRY(report.recipe, recipe_text(flags.recipe, target, report));
  return report;
}

void print(const TargetReport& report, const TargetFlags& target, const std::string& output, bool json) {
  const Divergence& divergence = report.found.divergence;
  const auto kept_of = [&](std::size_t group) {
    const ThresholdBackend::Counts& counts = report.counts[group];
    return counts.all == 0 ? 1.0 : static_cast<double>(counts.kept) / static_cast<double>(counts.all);
  };
  if (!json) {
    fmt::print("{:<50} {:>10} {:>10} {:>10}\n", "", "threshold", "wanted, %", "kept, %");
    for (std::size_t group = 0; group < report.groups.size(); ++group) {
      fmt::print("{:<50} {:>10} {:>10.1f} {:>10.1f}\n", report.groups[group].layers.front(),
                 report.thresholds[group] ? fmt::format("{:.4g}", *report.thresholds[group]) : "none",
                 100 * (1 - report.found.sparsities[group]), 100 * kept_of(group));
    }
    fmt::print("kept of all inputs     {:.1f} %\nKL divergence, mean    {:.3e} nats ({}) over {} tokens held out\n",
               100 * report.kept(), divergence.mean,
               divergence.interval ? fmt::format("95 % interval {:.3e} to {:.3e}", divergence.interval->first,
                                                 divergence.interval->second)
                                   : "no interval: one window is held out",
               report.held_out_tokens);
    return;
  }
  Json document{{"output", output},
                {"method", target.method},
                {"target_kl", target.target_kl},
                {"allocation", target.uniform ? "uniform" : "greedy"},
                {"tokens", report.tokens},
                {"held_out_tokens", report.held_out_tokens},
                {"kept_inputs", report.kept()},
                {"kl_mean", divergence.mean},
                {"ci95", {{"kl_mean", nullptr}}},
                {"layers", Json::array()}};
  if (divergence.interval) document["ci95"]["kl_mean"] = {divergence.interval->first, divergence.interval->second};
  for (std::size_t group = 0; group < report.groups.size(); ++group) {
    Json layer{{"layers", report.groups[group].layers},
               {"threshold", nullptr},
               {"wanted", 1 - report.found.sparsities[group]},
               {"kept", kept_of(group)}};
    if (report.thresholds[group]) layer["threshold"] = shortest(*report.thresholds[group]);
    document["layers"].push_back(std::move(layer));
  }
  fmt::print("{}\n", document.dump(-1, ' ', false, Json::error_handler_t::replace));
}

}  // namespace millrace::cli
