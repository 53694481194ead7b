#include "cluster/engine_runner.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <span>
#include <utility>

namespace millrace {

/// Between the engine's thread and the loop's.
struct EngineRunner::Queue {
  std::atomic<bool> paused{false};
  std::mutex mutex;
  std::vector<StreamEvent> events;  // guarded by mutex, as all below
  std::vector<std::int32_t> held;   // choices that the engine was asked to pause
  bool told = false;                // the loop knows that there is something
};

namespace {

void append(std::vector<StreamEvent>& events, const TokenEvent& event) {
  if (event.token >= 0) {
    events.emplace_back(TokenCame{
        .choice = event.choice, .token = event.token, .of_prompt = event.of_prompt, .logprobs = event.logprobs});
  }
  for (std::span<const float> rest(event.embedding); !rest.empty();) {
    const std::span<const float> part = rest.first(std::min(rest.size(), kMaxEmbeddingPart));
    events.emplace_back(EmbeddingCame{std::vector(part.begin(), part.end())});
    rest = rest.subspan(part.size());
  }
  switch (event.finish) {
    case FinishReason::none:
      return;
    case FinishReason::stop:
    case FinishReason::length:
      events.emplace_back(ChoiceEnd{event.choice, event.finish,
                                    event.summary != nullptr ? event.summary->cached_tokens : std::int64_t{0}});
      return;
    case FinishReason::cancelled:
      events.emplace_back(AttemptFailed{ErrorKind::unavailable, "the node has ended this request"});
      return;
    case FinishReason::error:
      // Of a failed step another node knows nothing; of a grammar that has become too complex every node does.
      events.emplace_back(AttemptFailed{event.error_kind.value_or(ErrorKind::unavailable), event.error});
      return;
  }
}

}  // namespace

EngineRunner::EngineRunner(Engine& engine, RunnerModel model, EventLoop& loop)
    : engine_(&engine), model_(std::move(model)), loop_(&loop) {}

EngineRunner::~EngineRunner() {
  *alive_ = false;
  for (const auto& [id, run] : runs_) engine_->cancel(run.request);
}

Result<Request> EngineRunner::make_request(const Placement& placement) const {
  if (placement.model != model_.name) {
    return Error{"this node does not serve " + placement.model, ErrorKind::unavailable};
  }
  if (!placement.numeric_class.empty() && placement.numeric_class != model_.numeric_class) {
    return Error{"this node is not of the numeric class " + placement.numeric_class, ErrorKind::unavailable};
  }
  Request request;
  request.prompt = placement.prompt;
  request.task = placement.task;
  request.sampling = placement.sampling;
  request.choices = static_cast<std::int32_t>(placement.choices.size());
  request.max_new_tokens = placement.max_new_tokens;
  request.stop_ids = placement.stop_ids;
  request.stop = placement.stop;
  request.special_text = placement.special_text;
  request.logprobs = placement.logprobs;
  request.prompt_logprobs = placement.prompt_logprobs;
  request.pinned_tokens = placement.pinned_tokens;
  request.priority = placement.priority;
  request.cache_salt = placement.cache_salt;
  // A stream at its beginning is cut to what fits here, as any request is; one that has begun must not be.
  const bool begun = std::ranges::any_of(placement.choices, &PlacedChoice::has_begun);
  for (const PlacedChoice& choice : placement.choices) {
    if (begun) request.begun.push_back({choice.tokens, choice.prompt_reported, choice.ended});
  }
  if (!placement.grammar) return request;
  if (model_.grammar_vocabulary == nullptr) {
    return Error{"this node has no constrained answers", ErrorKind::unavailable};
  }
  MILLRACE_TRY(Grammar grammar, Grammar::compile(*model_.grammar_vocabulary, *placement.grammar));
  request.grammar = std::make_shared<const Grammar>(std::move(grammar));
  return request;
}

void EngineRunner::start(RunId id, Placement placement, Sink sink) {
  Run& run = runs_[id];
  run.sink = std::move(sink);
  run.queue = std::make_shared<Queue>();
  run.open_choices = static_cast<std::size_t>(
      std::ranges::count_if(placement.choices, [](const PlacedChoice& choice) { return !choice.ended; }));
  auto request = make_request(placement);
  if (!request.ok()) {
    fail(id, request.error());
    return;
  }
  const auto take = [queue = run.queue, fresh = fresh_, engine = engine_, loop = loop_, alive = alive_, this,
                     id](const TokenEvent& event) {
    bool tell = false;
    const bool pause = queue->paused;
    {
      const std::lock_guard lock(queue->mutex);
      append(queue->events, event);
      if (pause && event.finish == FinishReason::none) queue->held.push_back(event.choice);
      tell = !std::exchange(queue->told, true);
    }
    if (tell) fresh->push_back(id);
    if (tell && fresh->size() == 1) {
      // The loop is woken once for all sequences of a step, and not in the middle of it, on the engine's processor.
      engine->after_sinks([this, fresh, loop, alive] {
        loop->post([this, alive, runs = std::exchange(*fresh, {})] {
          for (const RunId each : runs) {
            if (*alive) deliver(each);
          }
        });
      });
    }
    return pause ? Demand::pause : Demand::more;
  };
  auto submitted = engine_->submit(std::move(*request), take);
  if (!submitted.ok()) {
    fail(id, submitted.error());
    return;
  }
  run.request = *submitted;
  run.accepted = true;
  loop_->after(Duration{0}, [this, alive = alive_, id] {
    if (*alive) deliver(id);
  });
}

void EngineRunner::fail(RunId id, Error error) {
  loop_->after(Duration{0}, [this, alive = alive_, id, error = std::move(error)] {
    if (!*alive) return;
    const auto run = runs_.extract(id);
    if (!run.empty()) run.mapped().sink({AttemptFailed{error.kind, error.message}});
  });
}

void EngineRunner::deliver(RunId id) {
  const auto found = runs_.find(id);
  if (found == runs_.end()) return;
  Run& run = found->second;
  std::vector<StreamEvent> events, came;
  std::vector<std::int32_t> held;
  {
    const std::lock_guard lock(run.queue->mutex);
    came.swap(run.queue->events);
    held.swap(run.queue->held);
    run.queue->told = false;
  }
  if (!std::exchange(run.told, true)) events.emplace_back(Accepted{});
  for (StreamEvent& event : came) {
    if (std::holds_alternative<ChoiceEnd>(event)) --run.open_choices;
    if (std::holds_alternative<AttemptFailed>(event)) run.open_choices = 0;
    events.push_back(std::move(event));
    if (run.open_choices == 0) break;  // the other choices of an attempt that has failed end as well
  }
  if (events.empty()) return;
  for (const std::int32_t choice : held) {
    if (run.queue->paused) {
      run.held.push_back(choice);
    } else {
      engine_->resume(run.request, choice);
    }
  }
  const Sink tell = run.sink;
  if (run.open_choices == 0) {
    engine_->cancel(run.request);
    runs_.erase(found);
  }
  tell(std::move(events));
}

void EngineRunner::pause(RunId id) {
  if (const auto run = runs_.find(id); run != runs_.end()) run->second.queue->paused = true;
}

void EngineRunner::resume(RunId id) {
  const auto found = runs_.find(id);
  if (found == runs_.end()) return;
  Run& run = found->second;
  run.queue->paused = false;
  for (const std::int32_t choice : std::exchange(run.held, {})) engine_->resume(run.request, choice);
}

void EngineRunner::cancel(RunId id) {
  const auto run = runs_.extract(id);
  if (!run.empty() && run.mapped().accepted) engine_->cancel(run.mapped().request);
}

}  // namespace millrace
