// A batch, from its input to its output: all requests through one engine, many at once.
#pragma once

#include <cstdint>
#include <functional>

#include "core/result.h"
#include "engine/engine_core.h"
#include "server/api_model.h"
#include "server/batch_input.h"
#include "server/batch_output.h"

namespace millrace {

struct BatchOptions {
  /// Answers that run or wait in the engine. No further line is read while there are as many, so that the engine never
  /// lacks work and memory does not grow with the file.
  std::int64_t max_open = 256;
  std::function<bool()> stop = {};                                         // asked between steps: end now?
  std::function<void(std::int64_t done, std::int64_t all)> progress = {};  // requests
};

struct BatchSummary {
  std::int64_t requests = 0;                                             // of the input
  std::int64_t answered = 0;                                             // by this run, with status 200
  std::int64_t failed = 0;                                               // by this run, with another status
  std::int64_t skipped = 0;                                              // by earlier runs
  std::int64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;  // of `answered`
  double seconds = 0.0;
  bool stopped = false;  // requests are left

  [[nodiscard]] double output_tokens_per_second() const {
    return seconds > 0.0 ? static_cast<double>(output_tokens) / seconds : 0.0;
  }
};

/// Answers what `input` has left and appends each answer to `output` when it is complete, until all is on the disk or
/// `stop` says so. Each request gets what the server would answer to the same body, streams excepted. What has not
/// ended then is cancelled, and its requests stay unanswered. Error: the input cannot be read, the output not
/// written, or a step not computed.
Result<BatchSummary> run_batch(EngineCore& engine, const ServedModel& model, BatchInput& input, BatchOutput& output,
                               const BatchOptions& options);

}  // namespace millrace
