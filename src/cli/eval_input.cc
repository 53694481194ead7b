#include "cli/eval_input.h"

#include <algorithm>
#include <filesystem>
#include <span>

#include "bench/gzip.h"
#include "core/fnv.h"
#include "core/mapped_file.h"
#include "eval/retrieval_tasks.h"
#include "eval/task_files.h"
#include "eval/task_spec.h"

namespace millrace::cli {

namespace {

constexpr std::int64_t kWindow = 2048;                      // tokens, where the model can have as many
constexpr std::size_t kLargestFile = std::size_t{1} << 30;  // bytes
constexpr std::int64_t kProblems = 50;  // of each length of a made-up task, where --limit says nothing

std::uint64_t hash_of(std::span<const TokenWindow> windows) {
  Fnv1a hash;
  for (const TokenWindow& window : windows) {
    hash.add(window.size());
    for (const std::int32_t id : window) hash.add(static_cast<std::uint32_t>(id));
  }
  return hash.value();
}

std::int64_t longest_sequence(const EvalFlags& flags, const ModelPlan& plan) {
  const std::int64_t most = flags.model.max_model_len;
  return most > 0 ? std::min(most, plan.config.max_position) : plan.config.max_position;
}

Status read_text(const EvalFlags& flags, const ModelPlan& plan, const Tokenizer& tokenizer, EvalInput& input) {
  MILLRACE_TRY(const std::string content, read_text_file(flags.text));
  // Every window begins as a text does: with what the tokenizer puts before one, if that is a single token.
  MILLRACE_TRY(const std::vector<std::int32_t> start, tokenizer.encode("", true));
  MILLRACE_TRY(const std::vector<std::int32_t> ids, tokenizer.encode(content, false));
  const std::int64_t window = flags.window > 0 ? flags.window : std::min(longest_sequence(flags, plan), kWindow);
  MILLRACE_TRY(input.windows,
               cut_windows(ids, window, start.size() == 1 ? std::optional(start.front()) : std::nullopt));
  input.windows_hash = hash_of(input.windows);
  return Ok{};
}

Result<TaskFile> read_file(const std::string& path) {
  MILLRACE_TRY(std::string content, bench::read_maybe_gzip(path, kLargestFile));
  return TaskFile{.name = path, .content = std::move(content)};
}

/// The folder's files that end in .jsonl or .jsonl.gz, in the order of their names.
Result<std::vector<std::string>> names_in(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  std::filesystem::directory_iterator entry(folder, error);
  while (!error && entry != std::filesystem::directory_iterator()) {
    std::string name = entry->path().string();
    if (name.ends_with(".jsonl") || name.ends_with(".jsonl.gz")) names.push_back(std::move(name));
    entry.increment(error);  // ++ would throw
  }
  if (error) return fail("cannot read {}: {}", folder, error.message());
  if (names.empty()) return fail("the folder {} has no .jsonl or .jsonl.gz files", folder);
  std::ranges::sort(names);
  return names;
}

/// The files that the paths name, of a folder those with documents.
Result<std::vector<TaskFile>> read_files(std::span<const std::string> paths) {
  std::vector<TaskFile> files;
  for (const std::string& path : paths) {
    std::error_code error;
    std::vector<std::string> names{path};
    if (std::filesystem::is_directory(path, error)) {
      MILLRACE_TRY(names, names_in(path));
    }
    for (const std::string& name : names) {
      MILLRACE_TRY(TaskFile file, read_file(name));
      files.push_back(std::move(file));
    }
  }
  return files;
}

/// What is named, or else beside FILE.jsonl or FILE.jsonl.gz the file FILE-labels.lst, or nothing.
Result<TaskFile> labels_of(const TaskSpec& spec) {
  if (spec.paths.size() > 1) return read_file(spec.paths[1]);
  std::filesystem::path beside = spec.paths[0];
  beside.replace_filename(stem_of(spec.paths[0]) + "-labels.lst");
  std::error_code error;
  if (!std::filesystem::exists(beside, error)) return TaskFile();
  return read_file(beside.string());
}

Result<EvalTask> read_task(const TaskSpec& spec, const TaskModel& model, std::int64_t limit) {
  if (spec.name == "key_value" || spec.name == "needle" || spec.name == "instructions") {
    const std::vector<std::int64_t> lengths = spec.lengths.empty() ? usual_lengths(model) : spec.lengths;
    const std::int64_t problems = limit > 0 ? limit : kProblems;
    if (spec.name == "key_value") return make_key_value(model, lengths, problems);
    if (spec.name == "instructions") return make_instructions(model, lengths, problems);
    if (spec.paths.empty()) return make_needle(model, lengths, problems, std::nullopt);
    MILLRACE_TRY(const TaskFile text, read_file(spec.paths[0]));
    return make_needle(model, lengths, problems, text);
  }
  MILLRACE_TRY(const std::vector<TaskFile> files,
               read_files(std::span(spec.paths).first(spec.name == "blimp" ? spec.paths.size() : 1)));
  if (spec.name == "blimp") return read_blimp(model, files, limit);
  if (files.size() != 1) return fail("{} is a folder: {} is read from one file", spec.paths[0], spec.name);
  if (spec.name == "lambada") return read_lambada(model, files[0], limit);
  if (spec.name == "generate") return read_questions(model, files[0], limit);
  MILLRACE_TRY(const TaskFile labels, labels_of(spec));
  return read_piqa(model, files[0], labels, limit);
}

}  // namespace

Result<EvalInput> read_input(const EvalFlags& flags, const ModelPlan& plan) {
  MILLRACE_TRY(const std::optional<Tokenizer> tokenizer, load_tokenizer(plan.checkpoint));
  if (!tokenizer) return fail("{} has no tokenizer, which texts and tasks need", plan.checkpoint.path());
  EvalInput input;
  if (!flags.text.empty()) MILLRACE_CHECK_OK(read_text(flags, plan, *tokenizer, input));
  if (flags.tasks.empty()) return input;
  MILLRACE_TRY(const std::optional<ChatTemplate> chat_template, load_chat_template(plan.checkpoint));
  const TaskModel model{.tokenizer = &*tokenizer,
                        .chat_template = chat_template ? &*chat_template : nullptr,
                        .eos_ids = plan.config.eos_ids,
                        .longest = longest_sequence(flags, plan),
                        .vocab = plan.config.vocab};
  for (const std::string& text : flags.tasks) {
    MILLRACE_TRY(const TaskSpec spec, parse_task_spec(text));
    MILLRACE_TRY(EvalTask task, read_task(spec, model, flags.limit));
    input.tasks.push_back(std::move(task));
  }
  return input;
}

bool same_tokens(const EvalInput& a, const EvalInput& b) {
  return a.windows_hash == b.windows_hash && a.windows.size() == b.windows.size() &&
         std::ranges::equal(a.tasks, b.tasks, [](const EvalTask& one, const EvalTask& other) {
           return std::ranges::equal(
               one.documents, other.documents, {}, [&](const EvalDocument& document) { return hash_of(one, document); },
               [&](const EvalDocument& document) { return hash_of(other, document); });
         });
}

}  // namespace millrace::cli
