#include "eval/task.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <string_view>
#include <unordered_map>

#include "core/check.h"
#include "core/fnv.h"
#include "eval/bootstrap.h"
#include "eval/greedy_answers.h"
#include "runtime/run_tokens.h"

namespace millrace {

namespace {

bool is_perplexity(const std::string& metric) {
  return metric == "perplexity";
}

/// The index of the highest score; a tie with the right one is lost, lest a model that says nothing be right.
bool prefers(std::span<const double> scores, std::size_t right) {
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (i != right && scores[i] >= scores[right]) return false;
  }
  return true;
}

std::vector<double> values_of(TaskKind kind, const EvalDocument& document, std::span<const ContinuationScore> scores) {
  std::vector<double> plain, per_character;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    plain.push_back(scores[i].log_likelihood);
    if (!document.characters.empty()) per_character.push_back(plain.back() / document.characters[i]);
  }
  const auto value = [](bool right) { return right ? 1.0 : 0.0; };
  const ContinuationScore& first = scores.front();
  const std::vector<std::int32_t>& ends = document.end_ids;
  switch (kind) {
    case TaskKind::choice:
      return {value(prefers(plain, document.right))};
    case TaskKind::normalized_choice:
      return {value(prefers(plain, document.right)), value(prefers(per_character, document.right))};
    case TaskKind::last_word:
      return {value(first.greedy), first.log_likelihood};
    case TaskKind::answer:
      return {value(first.greedy && (ends.empty() || std::ranges::find(ends, first.next) != ends.end()))};
    case TaskKind::generation:
      break;
  }
  MILLRACE_CHECK(false, "a generation has no scores");
  return {};
}

/// Documents that are yet to be run, with what there is to say when one is done.
struct Rest {
  const EvalTask* task = nullptr;
  OutcomeFile* file = nullptr;
  TaskProgress progress;
  std::vector<const EvalDocument*> documents;  // of equal ones the first
  std::size_t done = 0;

  Status add(const EvalDocument& document, const std::vector<double>& values) {
    MILLRACE_CHECK_OK(file->add(hash_of(*task, document), values));
    ++done;
    const std::size_t before = task->documents.size() - documents.size();
    if (progress) {
      progress(static_cast<std::int64_t>(before + done), static_cast<std::int64_t>(task->documents.size()));
    }
    return Ok{};
  }
};

Status run_continuations(ModelRunner& runner, Rest& rest) {
  std::vector<const Continuation*> asked;
  for (const EvalDocument* document : rest.documents) {
    for (const Continuation& continuation : document->continuations) asked.push_back(&continuation);
  }
  std::vector<ContinuationScore> scores;  // of the document that is being run
  return score_continuations(runner, asked, [&](std::size_t, const ContinuationScore& score) -> Status {
    const EvalDocument& document = *rest.documents[rest.done];
    scores.push_back(score);
    if (scores.size() < document.continuations.size()) return Ok{};
    const std::vector<double> values = values_of(rest.task->kind, document, scores);
    scores.clear();
    return rest.add(document, values);
  });
}

Status run_generations(ModelRunner& runner, const Tokenizer& tokenizer, Rest& rest) {
  std::vector<const GenerationQuestion*> questions;
  for (const EvalDocument* document : rest.documents) questions.push_back(&document->question);
  return generate_answers(runner, tokenizer, questions, [&](std::size_t index, const std::string& text) {
    const EvalDocument& document = *rest.documents[index];
    const AnswerMatch match = match_answer(text, document.question.answers);
    return rest.add(document, {match.exact ? 1.0 : 0.0, match.contained ? 1.0 : 0.0});
  });
}

/// Error: a document that the model cannot run, with its name.
Status check_documents(ModelRunner& runner, TaskKind kind, std::span<const EvalDocument* const> documents) {
  for (const EvalDocument* document : documents) {
    Status checked = check_tokens(runner, document->question.prompt);
    // The KV memory may hold less than the model's context. The engine would cut the answer, and it would stay on disk.
    if (checked.ok() && kind == TaskKind::generation) {
      checked = check_room(document->question, runner.max_sequence_tokens());
    }
    for (const Continuation& each : document->continuations) {
      if (checked.ok()) checked = check_tokens(runner, each.tokens);
    }
    if (!checked.ok()) return fail("{}: {}", document->name, checked.error().message);
  }
  return Ok{};
}

/// Lists with their lengths, so that what ends one does not begin the next.
class Hash {
 public:
  void mix(std::uint64_t value) { hash_.add(value); }
  void mix(std::string_view text) {
    mix(text.size());
    hash_.add(text);
  }
  void mix(std::span<const std::int32_t> ids) {
    mix(ids.size());
    for (const std::int32_t id : ids) mix(static_cast<std::uint32_t>(id));
  }
  void mix(std::span<const std::string> texts) {
    mix(texts.size());
    for (const std::string& text : texts) mix(std::string_view(text));
  }
  [[nodiscard]] std::uint64_t value() const { return hash_.value(); }

 private:
  Fnv1a hash_;
};

/// Documents of a task that have figures together; the first group is all of them and has no name.
struct Group {
  std::string name;
  std::vector<std::size_t> documents;
};

std::vector<Group> groups_of(const EvalTask& task) {
  std::vector<Group> groups(1);
  for (std::size_t d = 0; d < task.documents.size(); ++d) {
    const std::string& name = task.documents[d].group;
    groups.front().documents.push_back(d);
    if (name.empty()) continue;
    const auto found = std::ranges::find(groups, name, &Group::name);
    Group& group = found == groups.end() ? groups.emplace_back(Group{.name = name, .documents = {}}) : *found;
    group.documents.push_back(d);
  }
  return groups;
}

/// The figure of a metric over a sample of the group in which its document i occurs counts[i] times.
double figure_of(const Group& group, const Outcomes& outcomes, std::size_t metric, bool perplexity,
                 std::span<const std::uint32_t> counts) {
  double sum = 0.0, all = 0.0;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    sum += counts[i] * outcomes[group.documents[i]][metric];
    all += counts[i];
  }
  return perplexity ? std::exp(-sum / all) : sum / all;
}

/// The figures of a group, one for each metric, all from the same samples.
std::vector<TaskFigure> figures_of(const EvalTask& task, const Group& group, const Outcomes& outcomes,
                                   const Outcomes* reference, const Outcomes& baseline) {
  const std::vector<std::uint32_t> once(group.documents.size(), 1);
  std::vector<TaskFigure> figures;
  std::vector<Statistic> statistics;
  std::vector<Estimate*> estimates;  // what the statistics are of
  const std::vector<std::string> metrics = metrics_of(task.kind);
  figures.reserve(metrics.size());  // they stay where they are
  for (std::size_t m = 0; m < metrics.size(); ++m) {
    const bool perplexity = is_perplexity(metrics[m]);
    TaskFigure& figure =
        figures.emplace_back(TaskFigure{.task = group.name.empty() ? task.name : task.name + "/" + group.name,
                                        .metric = metrics[m],
                                        .documents = static_cast<std::int64_t>(group.documents.size()),
                                        .value = {},
                                        .baseline = figure_of(group, baseline, m, perplexity, once)});
    const auto add = [&](Estimate& estimate, Statistic statistic) {
      estimate.value = statistic(once);
      estimates.push_back(&estimate);
      statistics.push_back(std::move(statistic));
    };
    const auto of = [&group, m, perplexity](const Outcomes& values) {
      return
          [&group, &values, m, perplexity](Sample counts) { return figure_of(group, values, m, perplexity, counts); };
    };
    add(figure.value, of(outcomes));
    if (reference == nullptr) continue;
    add(figure.reference.emplace(), of(*reference));
    add(figure.difference.emplace(),
        [run = of(outcomes), stored = of(*reference)](Sample counts) { return run(counts) - stored(counts); });
  }
  const std::vector<Interval> intervals = bootstrap_intervals(group.documents.size(), statistics);
  for (std::size_t i = 0; i < intervals.size(); ++i) estimates[i]->interval = intervals[i];
  return figures;
}

}  // namespace

std::vector<std::string> metrics_of(TaskKind kind) {
  switch (kind) {
    case TaskKind::choice:
      return {"acc"};
    case TaskKind::normalized_choice:
      return {"acc", "acc_norm"};
    case TaskKind::last_word:
      return {"acc", "perplexity"};
    case TaskKind::answer:
      return {"exact_match"};
    case TaskKind::generation:
      return {"exact_match", "contains"};
  }
  return {};
}

std::uint64_t hash_of(const EvalTask& task, const EvalDocument& document) {
  Hash hash;
  hash.mix(static_cast<std::uint64_t>(task.kind));
  for (const Continuation& continuation : document.continuations) {
    hash.mix(continuation.tokens);
    hash.mix(continuation.context);
    hash.mix(continuation.asks_further ? 1 : 0);
  }
  hash.mix(document.right);
  for (const double characters : document.characters) hash.mix(static_cast<std::uint64_t>(characters));
  hash.mix(document.end_ids);
  const GenerationQuestion& question = document.question;
  hash.mix(question.prompt);
  hash.mix(static_cast<std::uint64_t>(question.max_new_tokens));
  hash.mix(question.stop);
  hash.mix(question.stop_ids);
  hash.mix(question.answers);
  return hash.value();
}

Result<bool> has_all(const OutcomeFile& file, const EvalTask& task) {
  const std::size_t metrics = metrics_of(task.kind).size();
  bool all = true;
  for (const EvalDocument& document : task.documents) {
    const std::vector<double>* values = file.find(hash_of(task, document));
    if (values != nullptr && values->size() != metrics) return file.damaged();
    all = all && values != nullptr;
  }
  return all;
}

Outcomes outcomes_in(const OutcomeFile& file, const EvalTask& task) {
  Outcomes outcomes;
  for (const EvalDocument& document : task.documents) {
    const std::vector<double>* values = file.find(hash_of(task, document));
    MILLRACE_CHECK(values != nullptr && values->size() == metrics_of(task.kind).size(), "no outcome of {}",
                   document.name);
    outcomes.push_back(*values);
  }
  return outcomes;
}

Status run_task(ModelRunner& runner, const Tokenizer& tokenizer, const EvalTask& task, OutcomeFile& file,
                const TaskProgress& progress) {
  MILLRACE_TRY(const bool all, has_all(file, task));
  if (all) return Ok{};
  Rest rest{.task = &task, .file = &file, .progress = progress, .documents = {}};
  std::unordered_map<std::uint64_t, const EvalDocument*> seen;
  for (const EvalDocument& document : task.documents) {
    const std::uint64_t hash = hash_of(task, document);
    if (file.find(hash) == nullptr && seen.emplace(hash, &document).second) rest.documents.push_back(&document);
  }
  MILLRACE_CHECK_OK(check_documents(runner, task.kind, rest.documents));
  return task.kind == TaskKind::generation ? run_generations(runner, tokenizer, rest) : run_continuations(runner, rest);
}

std::vector<TaskFigure> summarize(const EvalTask& task, const Outcomes& outcomes, const Outcomes* reference) {
  Outcomes baseline;
  for (const EvalDocument& document : task.documents) baseline.push_back(document.baseline);
  std::vector<TaskFigure> figures;
  for (const Group& group : groups_of(task)) {
    std::ranges::move(figures_of(task, group, outcomes, reference, baseline), std::back_inserter(figures));
  }
  return figures;
}

}  // namespace millrace
