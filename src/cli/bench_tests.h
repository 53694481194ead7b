// What `millrace bench` runs: prefill, decode and both mixed, straight on the model runner. Ids cost nothing to make;
// no token is drawn but on a device that draws them itself.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/metered_backend.h"
#include "runtime/model_runner.h"
#include "runtime/step_batch.h"

namespace millrace::cli {

/// One run of a test: what was produced in which time, and the operations that it took.
struct BenchRun {
  double tokens = 0;
  double seconds = 0;
  std::map<OpKey, OpTotals> operations;
  SkipCounts skipped = {};
};

/// Errors: of a step (ModelRunner::run).
class BenchTests {
 public:
  static constexpr std::int32_t kShort = 16;  // tokens in front of what the decode test generates, at depth 0

  /// `meter` is the runner's backend.
  BenchTests(ModelRunner& runner, MeteredBackend& meter) : runner_(&runner), meter_(&meter) {}

  /// Computes `tokens` tokens behind `depth` others.
  Result<BenchRun> prefill(std::int32_t tokens, std::int32_t depth);

  /// `steps` decode steps at batch size `batch`, each sequence behind `depth` tokens.
  Result<BenchRun> decode(std::int32_t steps, std::int32_t batch, std::int32_t depth);

  /// `batch` requests that arrive together, each of `prompt` tokens that differ from the others' and `gen` more: what a
  /// server of that many requests can reach at most. The scheduler mixes prompts and decoding. Its tokens are the
  /// generated ones.
  Result<BenchRun> mixed(std::int32_t prompt, std::int32_t gen, std::int32_t batch);

 private:
  template <typename Function>
  Result<BenchRun> timed(double tokens, Function&& run);
  [[nodiscard]] std::vector<std::int32_t> make_ids(std::int32_t sequence, std::int32_t tokens) const;
  UnscheduledSequences make_sequences(std::int32_t count, std::int32_t tokens,
                                      std::optional<std::int32_t> answer_begin = {});
  Status compute(UnscheduledSequences& sequences, std::int32_t sequence, std::int32_t first, std::int32_t end);
  void fill(UnscheduledSequences& sequences, std::int32_t count, std::int32_t depth);
  Status run(const ForwardBatch& batch);

  ModelRunner* runner_;
  MeteredBackend* meter_;
};

}  // namespace millrace::cli
