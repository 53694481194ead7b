// `millrace run --batch`: a file of requests, answered in one go.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "cli/options.h"
#include "core/result.h"

namespace millrace::cli {

struct BatchFlags {
  std::string input, output;
  std::vector<std::string> names;
  std::int64_t max_sequences = 64;
  bool no_prefix_cache = false;
};

/// Registers the flags; the option that chooses a batch.
CLI::Option* add_batch_flags(CLI::App& command, BatchFlags& flags);

/// Goes on with what the output lacks. Error: also when it was told to stop before the end.
Status run_batch(const ModelFlags& model, const BatchFlags& flags);

}  // namespace millrace::cli
