// Tasks of looking things up in a context, made up here: at any length, and always the same.
//
// They have the form with which models/millrace-tiny and models/millrace-small were trained
// (models/train/retrieval.py): "Remember: KEY VALUE, KEY VALUE.\nWhat about KEY?", to be answered " KEY VALUE", and
// then to end. With a chat template the question is a user's message. A model that was not trained so has no reason to
// answer so.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/result.h"
#include "eval/task.h"
#include "eval/task_files.h"
#include "eval/task_model.h"

namespace millrace {

/// The lengths that are taken where none are named: 256, 512, 1024, 2048, 4096 and so on, as far as the model's context
/// and the words reach.
std::vector<std::int64_t> usual_lengths(const TaskModel& model);

/// One value among many: `problems` of each length, which is that of question and answer in tokens, a few less at most;
/// the lengths are groups. The baseline takes the value of any key: 1 / number of keys. Errors: a length that is beyond
/// the model's context or beyond what the words can fill, or that is too short; a chat template that fails.
Result<EvalTask> make_key_value(const TaskModel& model, std::span<const std::int64_t> lengths, std::int64_t problems);

/// One key and value in a text that is about other things: that of a file, from a random sentence on, or else made-up
/// sentences that do without the key. The baseline says any of the values: 1 / their number. Errors: those, and a text
/// that is too short.
Result<EvalTask> make_needle(const TaskModel& model, std::span<const std::int64_t> lengths, std::int64_t problems,
                             const std::optional<TaskFile>& text);

/// One of four keys and values that stand before a made-up text about other things, as instructions of a system do, and
/// are marked so (Continuation::pinned). Of four problems one behind the other each asks for another of the same
/// prompt. The baseline says any of the four values. Errors: as above.
Result<EvalTask> make_instructions(const TaskModel& model, std::span<const std::int64_t> lengths,
                                   std::int64_t problems);

}  // namespace millrace
