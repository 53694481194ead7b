// What `millrace eval` keeps on disk: what the model as stored says, and how far a run has come.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cli/eval_flags.h"
#include "cli/eval_input.h"
#include "core/result.h"
#include "eval/outcome_file.h"
#include "eval/reference_file.h"
#include "runtime/load_model.h"

namespace millrace::cli {

/// A model that is loaded when something first needs it.
class LazyModel {
 public:
  explicit LazyModel(LoadOptions options) : options_(std::move(options)) {}
  Result<const LoadedModel*> get();

 private:
  LoadOptions options_;
  std::optional<LoadedModel> model_;
};

/// What is compared with; without a text or tasks that part is empty.
struct EvalReference {
  std::optional<ReferenceFile> text;
  std::vector<Outcomes> tasks;  // in the order of the input's
};

/// What the model as stored says of the input: what is not on disk yet is computed. Errors: no folder for it, or no
/// room in it; the model cannot be loaded.
Result<EvalReference> reference_of(const EvalFlags& flags, const LoadOptions& tested, const ModelPlan& plan,
                                   const EvalInput& input);

/// The same of the model that --reference names. Error: it reads the input as other tokens.
Result<EvalReference> reference_of_other(const EvalFlags& flags, const LoadOptions& tested, const EvalInput& input);

/// The outcomes of the run itself. Where nothing is rounded they are what a recipe will be compared with, and stay;
/// else they are there for a run that is interrupted, and the caller removes them at its end. Without a reference they
/// are on disk only where the flags name a folder. Errors: as above.
Result<OutcomeFile> outcomes_of_run(const EvalFlags& flags, const LoadOptions& tested, const ModelPlan& plan);

/// Runs what is missing of the tasks, with a progress bar for each; `label` stands before its name.
Result<std::vector<Outcomes>> run_tasks(LazyModel& model, const std::vector<EvalTask>& tasks, OutcomeFile& file,
                                        const std::string& label);

}  // namespace millrace::cli
