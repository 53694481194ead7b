// The flags of `millrace eval`, for the files that share its work.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/options.h"

namespace millrace::cli {

struct EvalFlags {
  ModelFlags model;
  std::string text;  // empty: none
  std::int64_t window = 0;
  std::vector<std::string> tasks;  // eval/task_spec.h
  std::int64_t limit = 0;          // documents of each file; 0: all
  std::string plot;                // empty: none
  std::string reference, reference_cache;
  bool no_reference = false;
};

}  // namespace millrace::cli
