// What `millrace eval` prints and draws.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "core/result.h"
#include "eval/task.h"
#include "eval/text_quality.h"

namespace millrace::cli {

struct EvalReport {
  std::string model;
  bool lossless = false;  // a model as stored is its own reference
  std::vector<WindowQuality> windows = {};
  std::optional<TextQuality> text = {};
  SkipCounts skipped = {};             // on the text, of a recipe that leaves out inputs, and
  AttendCounts read = {};              // of keys and values
  std::vector<TaskFigure> tasks = {};  // of all tasks
};

/// One JSON document on standard output.
void print_json(const EvalReport& report);

/// The same for people.
void print_text(const EvalReport& report);

/// An SVG picture. Error: the file cannot be written.
Status write_plot(const EvalReport& report, const std::string& path);

}  // namespace millrace::cli
