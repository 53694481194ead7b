// `millrace eval`: how well a model predicts a text and does in tasks, with the uncertainty, and what a recipe has
// changed.

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>

#include "cli/eval_flags.h"
#include "cli/eval_input.h"
#include "cli/eval_reference.h"
#include "cli/eval_report.h"
#include "eval/cache_key.h"
#include "eval/task_spec.h"

namespace millrace::cli {

namespace {

/// Rows of a step that want logits: all rows of a text do. More where a row is small, so that short documents share
/// steps.
std::int64_t logit_rows(const ModelFlags& flags, std::int64_t vocab) {
  constexpr std::int64_t kFewest = 64, kFloats = std::int64_t{1} << 20;
  return std::min<std::int64_t>(std::max(kFewest, kFloats / vocab), flags.max_batch_tokens);
}

/// Before anything is run, so that nothing is run for nothing. Leaves no file that was not there.
Status check_writable(const std::string& path) {
  std::error_code error;
  const bool there = std::filesystem::exists(path, error);
  if (!std::ofstream(path, std::ios::app)) return fail("cannot write {}: name another file with --plot", path);
  if (!there) std::filesystem::remove(path, error);
  return Ok{};
}

Status run(const EvalFlags& flags) {
  MILLRACE_TRY(LoadOptions options, load_options(flags.model, 1));
  EvalReport report{.model = options.path.string()};
  EvalInput input;
  EvalReference reference;
  OutcomeFile outcomes;
  bool keep = false;  // the outcomes: those of a model as stored are what a recipe will be compared with
  if (!flags.plot.empty()) MILLRACE_CHECK_OK(check_writable(flags.plot));
  {
    MILLRACE_TRY(const ModelPlan plan, plan_model(options));
    options.limits.max_logit_rows = logit_rows(flags.model, plan.config.vocab);
    MILLRACE_TRY(input, read_input(flags, plan));
    keep = is_lossless(options, plan);
    report.lossless = keep && flags.reference.empty();
    if (!flags.reference.empty()) {
      MILLRACE_TRY(reference, reference_of_other(flags, options, input));
    } else if (!report.lossless && !flags.no_reference) {
      MILLRACE_TRY(reference, reference_of(flags, options, plan, input));
    }
    if (!input.tasks.empty()) {
      MILLRACE_TRY(outcomes, outcomes_of_run(flags, options, plan));
    }
  }
  LazyModel model(std::move(options));
  if (!input.windows.empty()) {
    ReferenceFile* text = reference.text ? &*reference.text : nullptr;
    MILLRACE_TRY(const LoadedModel* loaded, model.get());
    MILLRACE_TRY(report.windows, judge_windows(*loaded->runner, input.windows, text, progress_bar("evaluating")));
    report.text = summarize(report.windows, text != nullptr);
    report.skipped = loaded->runner->backend().skip_counts();
    if (!loaded->runner->policy().reads_all()) report.read = loaded->runner->backend().attend_counts();
  }
  MILLRACE_TRY(const std::vector<Outcomes> done, run_tasks(model, input.tasks, outcomes, ""));
  for (std::size_t t = 0; t < input.tasks.size(); ++t) {
    const Outcomes* beside = reference.tasks.empty() ? nullptr : &reference.tasks[t];
    std::ranges::move(summarize(input.tasks[t], done[t], beside), std::back_inserter(report.tasks));
  }
  if (!flags.plot.empty()) MILLRACE_CHECK_OK(write_plot(report, flags.plot));
  if (flags.model.json) {
    print_json(report);
  } else {
    print_text(report);
  }
  if (!keep) outcomes.remove();
  return Ok{};
}

/// Empty: it is one.
std::string check_task(const std::string& text) {
  const auto spec = parse_task_spec(text);
  return spec.ok() ? std::string() : spec.error().message;
}

std::string check_plot(const std::string& path) {
  if (path.ends_with(".svg") && path.size() > 4) return {};
  return fmt::format("{} does not end in .svg: what is drawn is SVG", path);
}

}  // namespace

void add_eval(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<EvalFlags>();
  CLI::App* command =
      app.add_subcommand("eval", "Measure how well a model predicts a text and does in tasks, and what a recipe loses");
  add_model_flags(*command, flags->model);
  command->add_option("--text", flags->text, "Text file");
  command->add_option("--window", flags->window, "Tokens of a window; absent: 2,048, or what the model can")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--tasks", flags->tasks,
                   "blimp:FOLDER_OR_FILE,... lambada:FILE piqa:FILE[,LABELS] key_value[:LENGTH,...] "
                   "needle[:LENGTH,...][,TEXT] instructions[:LENGTH,...] generate:FILE; may be repeated")
      ->allow_extra_args(false)
      ->check(check_task);
  command
      ->add_option("--limit", flags->limit,
                   "Documents of each file, the first ones; absent: all, and 50 of each length where they are made up")
      ->check(CLI::PositiveNumber);
  command->add_option("--plot", flags->plot, "SVG file to draw the figures into")->check(check_plot);
  command->add_option("--reference-cache", flags->reference_cache,
                      "Folder for what the model as stored says; absent: in the user's cache");
  command->add_option("--reference", flags->reference,
                      "Model to compare with, run as it is stored; absent: the same model as stored");
  command->add_flag("--no-reference", flags->no_reference,
                    "Do not run the model as stored: nothing is compared, nor kept but in --reference-cache");
  command->callback([flags, &chosen] {
    if (flags->text.empty() && flags->tasks.empty()) throw CLI::RequiredError("--text or --tasks");
    chosen = [flags] { return run(*flags); };
  });
}

}  // namespace millrace::cli
