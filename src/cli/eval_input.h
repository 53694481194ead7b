// What `millrace eval` runs, as a model reads it: the windows of a text, the documents of tasks.
#pragma once

#include <cstdint>
#include <vector>

#include "cli/eval_flags.h"
#include "core/result.h"
#include "eval/task.h"
#include "runtime/load_model.h"
#include "runtime/text_windows.h"

namespace millrace::cli {

struct EvalInput {
  std::vector<TokenWindow> windows;  // none without a text
  std::uint64_t windows_hash = 0;    // of their tokens
  std::vector<EvalTask> tasks;       // in the order of the flags
};

/// Reads text and tasks with the tokenizer of a model. Errors: a file that cannot be read or is not what it should be;
/// a document that is too long for the model; no tokenizer.
Result<EvalInput> read_input(const EvalFlags& flags, const ModelPlan& plan);

/// Whether both models read the same tokens, so that they can be compared.
bool same_tokens(const EvalInput& a, const EvalInput& b);

}  // namespace millrace::cli
