// The load test: sends requests when they are due and measures their answers.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "bench/exchange.h"
#include "bench/openai.h"
#include "bench/prompt.h"
#include "bench/statistics.h"
#include "core/result.h"

namespace millrace::bench {

/// A request to be sent.
struct PlannedRequest {
  double due_s = 0.0;  // from the start of the run; not looked at with a fixed concurrency
  std::vector<PromptPart> prompt = {};
  std::int32_t output_tokens = 0;

  [[nodiscard]] std::int64_t input_tokens() const;
};

struct LoadPlan {
  std::vector<PlannedRequest> requests;     // in order of their due times
  std::vector<PlannedRequest> warmup = {};  // sent before, all at once or at the same concurrency, and not counted
  /// So many requests are kept running, in order and whatever their due times; 0: each starts when it is due.
  std::int64_t concurrency = 0;
  std::uint64_t seed = 0;               // of the prompts
  TokenRange range = {};                // of their ids
  std::optional<PromptText> text = {};  // prompts are text from here instead of ids
};

struct LoadResult {
  std::vector<RequestRecord> records;  // in the order of the plan
  double duration_s = 0.0;             // from the start of the run to the end of its last request
  ClientCost client = {};
};

/// GET /v1/models. Errors: the server does not answer, or with something else.
Result<ServedModel> ask_model(const Target& target);

/// Runs the plan to its end on the calling thread. What goes wrong with a request is in its record; a stream that ends
/// with neither a finish_reason nor [DONE] has failed, and so has one without a token. Errors: those of
/// HttpClient::make and RequestWriter::make; a warmup request that failed. `progress` gets (done, all) requests; may be
/// empty.
Result<LoadResult> run_load(const Target& target, const RequestTemplate& common, const LoadPlan& plan,
                            const std::function<void(std::int64_t, std::int64_t)>& progress);

}  // namespace millrace::bench
