// What a user names as a task: NAME, or NAME:ARGUMENT,ARGUMENT...
//
//   blimp:FOLDER_OR_FILE,...   minimal pairs; of a folder all its .jsonl files
//   lambada:FILE               the last word of passages
//   piqa:FILE[,LABELS]         two solutions; LABELS absent: FILE with -labels.lst for .jsonl
//   key_value[:LENGTHS]        one value among many, made up
//   needle[:LENGTHS][,TEXT]    one in a text, made up or that of a file
//   instructions[:LENGTHS]     one of some that stand before all else
//   generate:FILE              questions whose answers are generated
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace millrace {

struct TaskSpec {
  std::string name;
  std::vector<std::string> paths = {};
  std::vector<std::int64_t> lengths = {};  // tokens; of what is made up only
};

/// Errors: no such task, arguments that it does not take or lacks; the message shows how it is named. No file is looked
/// at.
Result<TaskSpec> parse_task_spec(std::string_view text);

}  // namespace millrace
