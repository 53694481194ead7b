// EngineCore: the loop's body. Requests go in, a step at a time runs, token events come out. It owns the scheduler and
// what a request needs beside its tokens: sampling state, grammar, text.
//
// docs/engine-contract.md says who owns what and what may happen when.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "core/result.h"
#include "engine/report.h"
#include "engine/request.h"
#include "engine/request_state.h"
#include "runtime/model_runner.h"
#include "sched/scheduler.h"
#include "text/tokenizer.h"

namespace millrace {

struct EngineOptions {
  bool prefix_cache = true;
  std::int32_t max_waiting = 1024;                          // requests that may wait (Engine); more are refused as busy
  std::function<void(const StepReport&)> on_computed = {};  // on the thread that steps, before tokens are told: it may
                                                            // wait; rows and times so far are known
  std::function<void(const StepReport&)> on_step = {};      // on the thread that steps
  std::function<void(const RequestReport&)> on_request = {};  // on the thread that steps, before the sink's last event
};

/// Not thread-safe: one thread submits and steps.
class EngineCore {
 public:
  using Clock = std::chrono::steady_clock;

  /// `tokenizer` may be null: then the text of a token is its id, and a space. It and `runner` must outlive the engine.
  EngineCore(ModelRunner& runner, const Tokenizer* tokenizer, EngineOptions options = {});
  ~EngineCore();

  /// Any thread. Error: what can never run: an empty or too long prompt, an id outside the vocabulary, a bad parameter;
  /// with the figures. Cuts max_new_tokens to what fits.
  Status prepare(Request& request) const;

  /// Takes a request that prepare() has accepted. `submitted`: when its times begin.
  void submit(RequestId id, Request request, Sink sink, Clock::time_point submitted);

  /// Ends a request now: each choice that has not ended gets its last event, with FinishReason::cancelled. No effect on
  /// requests that have ended.
  void cancel(RequestId id);

  void cancel_all();

  /// The sink that answered `pause` for this choice wants more.
  void resume(RequestId id, std::int32_t choice);

  /// Runs one step of whatever is there. False when nothing can run: there is nothing, or all sinks have paused. Where
  /// the step fails, each choice that it was for gets its last event, with FinishReason::error; others go on.
  bool step();

  [[nodiscard]] bool idle() const { return requests_.empty(); }
  [[nodiscard]] EngineSnapshot snapshot() const;
  [[nodiscard]] const Scheduler& scheduler() const { return scheduler_; }

 private:
  struct Sampled {
    SequenceId id = 0;
    std::int32_t token = 0;
    std::optional<TokenLogprobs> logprobs = {};
    std::string error = {};  // of the grammar
  };

  [[nodiscard]] std::int64_t sequence_room(std::int64_t pinned) const;
  ForwardBatch prepare_batch(StepPlan& plan);
  /// For each row of logits how the device may draw its token.
  std::span<const std::optional<TokenDraw>> device_draws(const StepPlan& plan);
  void sample_rows(const StepPlan& plan, const ModelRunner::Outcome& outcome);
  Sampled sample_row(ChoiceState& choice, const StepEntry& entry, std::span<float> logits);
  void report_prompt(ChoiceState& choice, const StepEntry& entry, std::span<const float> logits);
  void pool_rows(const StepPlan& plan);
  void fail_step(const StepPlan& plan, const std::string& reason);
  void report_step(const StepPlan& plan);
  void deliver(const Sampled& sampled);
  void end_prompts(const StepPlan& plan);
  void emit(ChoiceState& choice, TokenEvent event);
  void finish(ChoiceState& choice, TokenEvent event);
  RequestSummary summarize(const RequestState& request) const;

  ModelRunner* runner_;
  const Tokenizer* tokenizer_;
  EngineOptions options_;
  Scheduler scheduler_;
  std::vector<std::int64_t> windows_;  // of each cache group
  std::unordered_map<RequestId, std::unique_ptr<RequestState>> requests_;
  std::unordered_map<SequenceId, ChoiceState*> sequences_;  // choices that have not ended
  std::vector<std::unique_ptr<RequestState>> finished_;     // since the last step began: a sink may still be running
  SequenceId next_sequence_ = 1;

  // Of the step that runs.
  std::vector<std::optional<TokenDraw>> draws_;
  std::vector<Sampled> sampled_;
  PageMasses masses_;
  std::vector<std::uint32_t> allowed_;
  SamplerScratch scratch_;
  std::vector<double> inter_token_;
  StepReport report_;
  Scheduler::Counters reported_;  // what the last report was up to
};

}  // namespace millrace
