// Tasks: documents that a model gets right or wrong, and what their figures are.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/result.h"
#include "eval/continuation.h"
#include "eval/outcome_file.h"
#include "eval/text_quality.h"
#include "runtime/model_runner.h"
#include "text/tokenizer.h"

namespace millrace {

enum class TaskKind : std::uint8_t {
  choice,             // the likeliest continuation is to be the right one: acc
  normalized_choice,  // … also the likeliest per character: acc, acc_norm
  last_word,          // greedy decoding is to give the continuation: acc; and how likely it is: perplexity
  answer,             // … and then to end, where the document says how: exact_match
  generation          // what is generated is to be an accepted answer, or to contain one: exact_match, contains
};

/// What is generated for a document of TaskKind::generation, and what is accepted.
struct GenerationQuestion {
  std::vector<std::int32_t> prompt;
  std::int64_t max_new_tokens = 64;
  std::vector<std::string> stop = {};
  std::vector<std::string> answers = {};  // at least one; compared without white space around them
  std::vector<std::int32_t> stop_ids = {};
};

/// The unit of the intervals. Values of a document, one for each metric of the task: 0 or 1, and for a perplexity a log
/// likelihood in nats.
struct EvalDocument {
  std::string name;   // for messages: file and line
  std::string group;  // of the task's documents: a paradigm, a length; may be empty
  std::vector<Continuation> continuations = {};
  std::size_t right = 0;                   // of the continuations
  std::vector<double> characters = {};     // of each, for normalized_choice
  std::vector<std::int32_t> end_ids = {};  // for `answer`: what may follow it; empty: anything
  GenerationQuestion question = {};        // for `generation`
  std::vector<double> baseline = {};       // values of a rule that needs no model
};

struct EvalTask {
  std::string name;
  TaskKind kind = TaskKind::choice;
  std::vector<EvalDocument> documents;
};

/// The names of the task's metrics, in the order of a document's values.
std::vector<std::string> metrics_of(TaskKind kind);

/// Tells documents apart: whatever their values depend on, beside the model.
std::uint64_t hash_of(const EvalTask& task, const EvalDocument& document);

/// The values of all documents.
using Outcomes = std::vector<std::vector<double>>;

/// (done, all) documents.
using TaskProgress = std::function<void(std::int64_t, std::int64_t)>;

/// Whether the file has all documents, so that run_task() needs no model. Error: a document there has not as many
/// values as the task has metrics.
Result<bool> has_all(const OutcomeFile& file, const EvalTask& task);
/// What it has; it must have all.
Outcomes outcomes_in(const OutcomeFile& file, const EvalTask& task);

/// Runs the documents that the file does not have yet, and adds each as soon as it is done. Many share a step. Errors:
/// a document that the model cannot run, or whose answer may not fit behind its prompt, before any is run; the file
/// cannot be written.
Status run_task(ModelRunner& runner, const Tokenizer& tokenizer, const EvalTask& task, OutcomeFile& file,
                const TaskProgress& progress);

/// A figure over documents, with its interval; beside the same of the model as stored.
struct TaskFigure {
  std::string task;  // its name, and the group's: "blimp", "blimp/causative"
  std::string metric;
  std::int64_t documents = 0;
  Estimate value;
  std::optional<Estimate> reference = {};
  std::optional<Estimate> difference = {};  // to the reference, paired by documents
  double baseline = 0.0;
};

/// Figures over all documents first, then over those of each group. `reference` may be null.
std::vector<TaskFigure> summarize(const EvalTask& task, const Outcomes& outcomes, const Outcomes* reference);

}  // namespace millrace
