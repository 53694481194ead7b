#include "eval/task_files.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "eval/greedy_answers.h"

namespace millrace {

namespace {

using Json = nlohmann::json;

/// What `add` is called with: a line's document, with its name set, and its JSON. Its errors get that name.
using AddLine = std::function<Status(EvalDocument& document, const Json& json)>;

/// Calls `add` for each line that is not empty, up to `limit` of them, and collects the documents.
Status read_lines(const TaskFile& file, std::int64_t limit, std::vector<EvalDocument>& documents, const AddLine& add) {
  const std::size_t before = documents.size();
  std::int64_t number = 0;
  for (std::size_t at = 0; at < file.content.size();) {
    if (limit > 0 && static_cast<std::int64_t>(documents.size() - before) == limit) break;
    const std::size_t end = std::min(file.content.find('\n', at), file.content.size());
    const std::string_view line = trimmed(std::string_view(file.content).substr(at, end - at));
    at = end + 1;
    ++number;
    if (line.empty()) continue;
    EvalDocument document{.name = fmt::format("{} line {}", file.name, number), .group = {}};
    const Json json = Json::parse(line, nullptr, false);
    if (!json.is_object()) return fail("{} is not a JSON object, as each line should be", document.name);
    const Status added = add(document, json);
    if (!added.ok()) return fail("{}: {}", document.name, added.error().message);
    documents.push_back(std::move(document));
  }
  if (documents.size() == before)
    return fail("{} has no documents: a JSON object on each line was expected", file.name);
  return Ok{};
}

Result<std::string> text_of(const Json& json, const char* key, std::string_view expected) {
  const auto found = json.find(key);
  if (found == json.end() || !found->is_string()) return fail("no text \"{}\"; expected {}", key, expected);
  return found->get<std::string>();
}

/// lm-evaluation-harness counts characters, not bytes.
double characters_of(std::string_view text) {
  return static_cast<double>(
      std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

std::string_view without_punctuation(std::string_view word) {
  const auto is_word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || (c & 0x80) != 0; };
  while (!word.empty() && !is_word(word.front())) word.remove_prefix(1);
  while (!word.empty() && !is_word(word.back())) word.remove_suffix(1);
  if (word.ends_with("'s")) word.remove_suffix(2);
  return word;
}

/// The labels file: a number on each line.
Result<std::vector<std::size_t>> parse_labels(const TaskFile& file) {
  std::vector<std::size_t> labels;
  for (std::size_t at = 0; at < file.content.size();) {
    const std::size_t end = std::min(file.content.find('\n', at), file.content.size());
    const std::string_view line = trimmed(std::string_view(file.content).substr(at, end - at));
    at = end + 1;
    if (line.empty() && at >= file.content.size()) break;
    if (line != "0" && line != "1") {
      return fail("{} line {} is \"{}\", expected 0 or 1", file.name, labels.size() + 1, line);
    }
    labels.push_back(line == "1" ? 1 : 0);
  }
  return labels;
}

/// One text, or a list of them.
Result<std::vector<std::string>> texts_of(const Json& json, std::string_view key) {
  if (json.is_string()) return std::vector{json.get<std::string>()};
  std::vector<std::string> texts;
  if (json.is_array()) {
    for (const Json& each : json) {
      if (each.is_string()) texts.push_back(each.get<std::string>());
    }
  }
  if (texts.empty() || texts.size() != json.size()) return fail("\"{}\" is neither a text nor a list of texts", key);
  return texts;
}

/// What a line of questions says, by whichever of its names.
const Json* first_of(const Json& json, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    if (const auto found = json.find(key); found != json.end()) return &*found;
  }
  return nullptr;
}

Status read_question(const TaskModel& model, const Json& json, GenerationQuestion& question) {
  const Json* prompt = first_of(json, {"prompt", "input"});
  const Json* answer = first_of(json, {"answer", "answers", "outputs"});
  if (prompt == nullptr || !prompt->is_string()) return fail("no text \"prompt\"; expected \"prompt\" and \"answer\"");
  if (answer == nullptr) return fail("no \"answer\"; expected \"prompt\" and \"answer\"");
  MILLRACE_TRY(question.answers, texts_of(*answer, "answer"));
  for (const std::string& each : question.answers) {
    if (trimmed(each).empty()) return fail("an empty answer, which every text contains");
  }
  if (const auto stop = json.find("stop"); stop != json.end()) {
    MILLRACE_TRY(question.stop, texts_of(*stop, "stop"));
  }
  if (const auto most = json.find("max_tokens"); most != json.end()) {
    if (!most->is_number_integer() || most->get<std::int64_t>() < 1) {
      return fail("\"max_tokens\" is not a number of tokens");
    }
    question.max_new_tokens = most->get<std::int64_t>();
  }
  MILLRACE_TRY(question.prompt, encode_text(model, prompt->get<std::string>()));
  if (question.prompt.empty()) return fail("the prompt has no tokens");
  question.stop_ids = model.eos_ids;
  return check_room(question, model.longest);
}

}  // namespace

std::string stem_of(const std::string& path) {
  std::filesystem::path name = std::filesystem::path(path).filename();
  if (name.extension() == ".gz") name = name.stem();
  return name.stem().string();
}

std::string likely_name(std::string_view text) {
  std::map<std::string_view, std::int64_t> counts;
  std::string_view best;
  std::vector<std::string_view> names;  // in order
  bool starts = true;                   // a sentence
  for (std::size_t at = text.find_first_not_of(" \n\t"); at < text.size();) {
    const std::size_t end = std::min(text.find_first_of(" \n\t", at), text.size());
    const std::string_view whole = text.substr(at, end - at), word = without_punctuation(whole);
    if (!starts && word.size() > 1 && word.front() >= 'A' && word.front() <= 'Z') {
      ++counts[word];
      names.push_back(word);
    }
    starts = std::string_view(".!?\"'`").find(whole.back()) != std::string_view::npos;
    at = text.find_first_not_of(" \n\t", end);
  }
  for (const std::string_view name : names) {
    if (best.empty() || counts[name] > counts[best]) best = name;
  }
  return std::string(best);
}

Result<EvalTask> read_blimp(const TaskModel& model, std::span<const TaskFile> files, std::int64_t limit) {
  EvalTask task{.name = "blimp", .kind = TaskKind::choice, .documents = {}};
  for (const TaskFile& file : files) {
    MILLRACE_CHECK_OK(read_lines(file, limit, task.documents, [&](EvalDocument& document, const Json& json) -> Status {
      document.group = stem_of(file.name);
      document.baseline = {0.5};
      for (const char* key : {"sentence_good", "sentence_bad"}) {
        MILLRACE_TRY(const std::string sentence, text_of(json, key, "\"sentence_good\" and \"sentence_bad\""));
        MILLRACE_TRY(Continuation continuation, make_continuation(model, "", sentence));
        document.continuations.push_back(std::move(continuation));
      }
      return Ok{};
    }));
  }
  return task;
}

Result<EvalTask> read_lambada(const TaskModel& model, const TaskFile& file, std::int64_t limit) {
  EvalTask task{.name = "lambada", .kind = TaskKind::last_word, .documents = {}};
  const double uniform = -std::log(static_cast<double>(model.vocab));
  MILLRACE_CHECK_OK(read_lines(file, limit, task.documents, [&](EvalDocument& document, const Json& json) -> Status {
    MILLRACE_TRY(const std::string text, text_of(json, "text", "a passage under \"text\""));
    const std::size_t space = text.rfind(' ');
    if (space == std::string::npos || space == 0 || space + 1 == text.size()) {
      return fail("\"text\" has no last word behind a space");
    }
    MILLRACE_TRY(Continuation word, make_continuation(model, text.substr(0, space), text.substr(space)));
    const auto tokens = static_cast<double>(word.tokens.size() - word.context);
    const bool guessed = likely_name(std::string_view(text).substr(0, space)) == text.substr(space + 1);
    document.baseline = {guessed ? 1.0 : 0.0, tokens * uniform};
    document.continuations.push_back(std::move(word));
    return Ok{};
  }));
  return task;
}

Result<EvalTask> read_piqa(const TaskModel& model, const TaskFile& file, const TaskFile& labels, std::int64_t limit) {
  EvalTask task{.name = "piqa", .kind = TaskKind::normalized_choice, .documents = {}};
  MILLRACE_TRY(const std::vector<std::size_t> right, parse_labels(labels));
  MILLRACE_CHECK_OK(read_lines(file, limit, task.documents, [&](EvalDocument& document, const Json& json) -> Status {
    constexpr std::string_view kExpected = "\"goal\", \"sol1\" and \"sol2\"";
    MILLRACE_TRY(const std::string goal, text_of(json, "goal", kExpected));
    for (const char* key : {"sol1", "sol2"}) {
      MILLRACE_TRY(const std::string solution, text_of(json, key, kExpected));
      MILLRACE_TRY(Continuation continuation,
                   make_continuation(model, "Question: " + goal + "\nAnswer:", " " + solution));
      document.continuations.push_back(std::move(continuation));
      document.characters.push_back(std::max(1.0, characters_of(solution)));
    }
    const std::size_t index = task.documents.size();
    if (const auto label = json.find("label"); label != json.end()) {
      if (*label != 0 && *label != 1) return fail("\"label\" is neither 0 nor 1");
      document.right = label->get<std::size_t>();
    } else if (index < right.size()) {
      document.right = right[index];
    } else if (labels.name.empty()) {
      return fail("no \"label\", and no file with labels: name one behind a comma, piqa:FILE,LABELS");
    } else {
      return fail("{} has {} labels, none for this document", labels.name, right.size());
    }
    document.baseline = {0.5, 0.5};
    return Ok{};
  }));
  if (limit == 0 && !right.empty() && right.size() != task.documents.size()) {
    return fail("{} has {} labels, but {} has {} documents", labels.name, right.size(), file.name,
                task.documents.size());
  }
  return task;
}

Result<EvalTask> read_questions(const TaskModel& model, const TaskFile& file, std::int64_t limit) {
  EvalTask task{.name = "generate", .kind = TaskKind::generation, .documents = {}};
  std::map<std::string, std::int64_t> counts;  // of first answers
  MILLRACE_CHECK_OK(read_lines(file, limit, task.documents, [&](EvalDocument& document, const Json& json) -> Status {
    document.group = stem_of(file.name);
    Status read = read_question(model, json, document.question);
    if (read.ok()) ++counts[document.question.answers.front()];
    return read;
  }));
  const auto usual = std::ranges::max_element(counts, {}, [](const auto& answer) { return answer.second; });
  for (EvalDocument& document : task.documents) {
    const AnswerMatch match = match_answer(usual->first, document.question.answers);
    document.baseline = {match.exact ? 1.0 : 0.0, match.contained ? 1.0 : 0.0};
  }
  return task;
}

}  // namespace millrace
