// Flags that several subcommands share, and how a subcommand ends.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "runtime/load_model.h"

namespace millrace::cli {

/// Flags of every command that loads a model (the contract of the command line).
struct ModelFlags {
  std::string model;  // empty: the built-in model
  std::string recipe;
  int threads = 0;
  std::string device = "auto";
  std::string isa;
  std::string kv_memory, swap_memory, weight_memory, weight_directory;
  std::int64_t max_model_len = 0;
  int max_batch_tokens = 512;
  std::string compute_dtype = "auto";
  bool dummy = false;
  bool json = false;
};

void add_model_flags(CLI::App& command, ModelFlags& flags);

/// Path of the model that the flags name; the built-in one where they name none. Error: no built-in model was found.
Result<std::string> model_path(const ModelFlags& flags);

/// The flags as what load_model and plan_model take; without progress.
Result<LoadOptions> load_options(const ModelFlags& flags, std::int64_t max_logit_rows);

/// Loads the model with a progress bar on standard error where that is a terminal. `max_logit_rows`: rows of a step
/// that may want logits; `sequences`: that run at once.
Result<LoadedModel> load(const ModelFlags& flags, std::int64_t max_logit_rows, std::int64_t sequences = 1);
Result<LoadedModel> load(LoadOptions options);

/// A progress bar on standard error, called with (done, all); silent where that is no terminal.
std::function<void(std::int64_t, std::int64_t)> progress_bar(const char* label);

/// "1,2,3" as token ids.
Result<std::vector<std::int32_t>> parse_ids(const std::string& text);

/// A subcommand: registers its flags on `app`; `run` is set to what main() calls when it was chosen.
using Command = std::function<Status()>;
void add_run(CLI::App& app, Command& chosen);
void add_logits(CLI::App& app, Command& chosen);
void add_tokenize(CLI::App& app, Command& chosen);
void add_inspect(CLI::App& app, Command& chosen);
void add_bench(CLI::App& app, Command& chosen);
void add_eval(CLI::App& app, Command& chosen);
void add_quantize(CLI::App& app, Command& chosen);
void add_calibrate(CLI::App& app, Command& chosen);
void add_serve(CLI::App& app, Command& chosen);
void add_bench_serve(CLI::App& app, Command& chosen);
void add_node(CLI::App& app, Command& chosen);
void add_gateway(CLI::App& app, Command& chosen);
void add_simulate(CLI::App& app, Command& chosen);
void add_terms(CLI::App& app, Command& chosen);
void add_tenant(CLI::App& app, Command& chosen);
void add_status(CLI::App& app, Command& chosen);
void add_cost(CLI::App& app, Command& chosen);

}  // namespace millrace::cli
