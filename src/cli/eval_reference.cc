#include "cli/eval_reference.h"

#include <cstdio>
#include <cstdlib>

#include "core/mapped_file.h"
#include "core/memory.h"
#include "eval/cache_key.h"

namespace millrace::cli {

namespace {

Result<std::filesystem::path> cache_folder(const EvalFlags& flags) {
  if (!flags.reference_cache.empty()) return std::filesystem::path(flags.reference_cache);
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache == '/') {
    return std::filesystem::path(cache) / "millrace" / "eval";
  }
  if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/') {
    return std::filesystem::path(home) / ".cache" / "millrace" / "eval";
  }
  return fail("no folder for the reference: HOME is not set; name one with --reference-cache");
}

/// Says what is about to be written. Error: the disk has no room for it.
Status announce(const std::filesystem::path& folder, const EvalInput& input, std::size_t there, std::int64_t vocab) {
  std::uint64_t positions = 0;
  for (std::size_t w = there; w < input.windows.size(); ++w) positions += input.windows[w].size() - 1;
  const std::uint64_t most = positions * 2 * static_cast<std::uint64_t>(vocab);
  std::error_code error;
  const auto space = std::filesystem::space(folder, error);
  if (!error && space.available < most) {
    return fail(
        "what the model as stored says of this text takes up to {}, and {} has {} left: name another folder with "
        "--reference-cache, take a shorter text, or do without (--no-reference)",
        format_size(most), folder.string(), format_size(space.available));
  }
  fmt::print(stderr, "running the model as stored first; what it says takes up to {} in {} (--no-reference: without)\n",
             format_size(most), folder.string());
  return Ok{};
}

/// The file with what the model says of the text, computed as far as it is not there.
Result<ReferenceFile> text_reference(const std::filesystem::path& folder, const std::string& key, LazyModel& stored,
                                     const EvalInput& input, std::int64_t vocab) {
  MILLRACE_TRY(ReferenceFile file,
               ReferenceFile::open(cache_file(folder, key, "reference"), key, static_cast<std::int32_t>(vocab)));
  if (file.windows() < input.windows.size()) {
    MILLRACE_CHECK_OK(announce(folder, input, file.windows(), vocab));
    MILLRACE_TRY(const LoadedModel* model, stored.get());
    MILLRACE_CHECK_OK(write_reference(*model->runner, input.windows, file, progress_bar("reference")));
  }
  file.finish();
  return file;
}

Result<OutcomeFile> stored_outcomes(const std::filesystem::path& folder, const LoadOptions& options,
                                    const ModelPlan& plan) {
  MILLRACE_TRY(const std::string stored, stored_key(options, plan));
  const std::string key = "tasks\n" + stored;
  return OutcomeFile::open(cache_file(folder, key, "tasks"), key);
}

}  // namespace

Result<const LoadedModel*> LazyModel::get() {
  if (!model_) {
    MILLRACE_TRY(model_, load(options_));
  }
  return &*model_;
}

Result<std::vector<Outcomes>> run_tasks(LazyModel& model, const std::vector<EvalTask>& tasks, OutcomeFile& file,
                                        const std::string& label) {
  std::vector<Outcomes> outcomes;
  for (const EvalTask& task : tasks) {
    MILLRACE_TRY(const bool all, has_all(file, task));
    if (!all) {
      MILLRACE_TRY(const LoadedModel* loaded, model.get());
      const std::string name = label + task.name;  // outlives the bar
      MILLRACE_CHECK_OK(run_task(*loaded->runner, *loaded->tokenizer, task, file, progress_bar(name.c_str())));
    }
    outcomes.push_back(outcomes_in(file, task));
  }
  return outcomes;
}

Result<EvalReference> reference_of(const EvalFlags& flags, const LoadOptions& tested, const ModelPlan& plan,
                                   const EvalInput& input) {
  MILLRACE_TRY(const std::filesystem::path folder, cache_folder(flags));
  LazyModel stored(as_stored(tested));
  EvalReference reference;
  if (!input.windows.empty()) {
    MILLRACE_TRY(const std::string of_model, stored_key(tested, plan));
    const std::string key = of_model + fmt::format("{} windows {:016x}\n", input.windows.size(), input.windows_hash);
    MILLRACE_TRY(reference.text, text_reference(folder, key, stored, input, plan.config.vocab));
  }
  if (!input.tasks.empty()) {
    MILLRACE_TRY(OutcomeFile file, stored_outcomes(folder, tested, plan));
    MILLRACE_TRY(reference.tasks, run_tasks(stored, input.tasks, file, "as stored: "));
  }
  return reference;
}

Result<EvalReference> reference_of_other(const EvalFlags& flags, const LoadOptions& tested, const EvalInput& input) {
  LoadOptions other = tested;
  other.path = flags.reference;
  other.recipe = {};
  MILLRACE_TRY(const ModelPlan plan, plan_model(other));
  MILLRACE_TRY(const EvalInput as_other, read_input(flags, plan));
  if (!same_tokens(input, as_other)) {
    return fail("{} reads text or tasks as other tokens than {}, or ends answers at others: they cannot be compared",
                flags.reference, tested.path.string());
  }
  return reference_of(flags, other, plan, as_other);
}

Result<OutcomeFile> outcomes_of_run(const EvalFlags& flags, const LoadOptions& tested, const ModelPlan& plan) {
  if (flags.no_reference && flags.reference_cache.empty()) return OutcomeFile();
  MILLRACE_TRY(const std::filesystem::path folder, cache_folder(flags));
  if (is_lossless(tested, plan)) return stored_outcomes(folder, tested, plan);
  std::string recipe;
  if (!flags.model.recipe.empty()) {
    MILLRACE_TRY(recipe, read_text_file(flags.model.recipe));
  }
  MILLRACE_TRY(const std::string key, run_key(tested, plan, recipe));
  return OutcomeFile::open(cache_file(folder, key, "progress"), key);
}

}  // namespace millrace::cli
