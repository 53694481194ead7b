// Tasks whose documents come from files, a JSON object on each line. Pure: the files' contents are given.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "core/result.h"
#include "eval/task.h"
#include "eval/task_model.h"

namespace millrace {

struct TaskFile {
  std::string name;  // its path, for messages
  std::string content;
};

// Of each file the first `limit` documents are read; 0: all. Errors name the file and the line: not JSON, a key that is
// missing (with the keys that were expected), a document longer than the model's context, no documents at all.

/// BLiMP: of two sentences that differ in little the grammatical one is to be the more likely. Lines have
/// "sentence_good" and "sentence_bad"; each file is a paradigm, and a group. The baseline is chance.
/// Source: Warstadt et al., "BLiMP: The Benchmark of Linguistic Minimal Pairs for English" (2020).
Result<EvalTask> read_blimp(const TaskModel& model, std::span<const TaskFile> files, std::int64_t limit);

/// LAMBADA: the last word of a passage is to be guessed from what stands before it. Lines have "text". The baseline
/// guesses the name that the passage says most often (likely_name()); that of the perplexity finds all tokens equally
/// likely. Source: Paperno et al., "The LAMBADA dataset: Word prediction requiring a broad discourse context" (2016).
Result<EvalTask> read_lambada(const TaskModel& model, const TaskFile& file, std::int64_t limit);

/// PIQA: of two solutions the one that works is to be the more likely behind "Question: GOAL\nAnswer:"; acc by the
/// likelihood of the whole solution, acc_norm by that divided by its characters, as lm-evaluation-harness has them.
/// Lines have "goal", "sol1" and "sol2"; `labels` has a line 0 or 1 for each of them, unless they have "label"
/// themselves. The baseline is chance. Source: Bisk et al., "PIQA: Reasoning about Physical Commonsense in Natural
/// Language" (2020).
Result<EvalTask> read_piqa(const TaskModel& model, const TaskFile& file, const TaskFile& labels, std::int64_t limit);

/// Questions whose answers are generated. Lines have "prompt" (or "input") and "answer" (or "outputs"), a text or a
/// list of accepted ones; "max_tokens" (64) and "stop", a list of texts that end an answer, may be there. The baseline
/// always gives the answer that is right most often.
Result<EvalTask> read_questions(const TaskModel& model, const TaskFile& file, std::int64_t limit);

/// The file's name without folder and ending; the ending before ".gz" goes too.
std::string stem_of(const std::string& path);

/// The word with a capital that a text has most often other than at the start of a sentence, of equal ones the first;
/// empty where there is none.
std::string likely_name(std::string_view text);

}  // namespace millrace
