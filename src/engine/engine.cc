#include "engine/engine.h"

#include <algorithm>
#include <utility>

#include "core/check.h"

namespace millrace {

namespace {

SchedulerLimits scheduler_limits(ModelRunner& runner) {
  const Decoder::Limits& limits = runner.limits();
  return {.max_batch_tokens = static_cast<std::int32_t>(limits.max_rows),
          .max_sequences = static_cast<std::int32_t>(limits.max_logit_rows),
          .total_pages = runner.cache().pages(),
          .page_tokens = runner.cache().layout().page_tokens};
}

double seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

Engine::Engine(ModelRunner& runner, const Tokenizer* tokenizer)
    : runner_(&runner),
      tokenizer_(tokenizer),
      scheduler_(scheduler_limits(runner)),
      windows_(runner.cache().windows()) {}

Engine::~Engine() = default;

Result<SequenceId> Engine::submit(Request request, Sink sink) {
  const ModelConfig& config = runner_->config();
  if (request.prompt.empty()) return fail("the prompt has no tokens");
  for (const std::int32_t token : request.prompt) {
    if (token < 0 || token >= config.vocab) {
      return fail("token id {} is outside the vocabulary of {} tokens", token, config.vocab);
    }
  }
  if (request.max_new_tokens < 1) return fail("max_new_tokens is {}, expected 1 or more", request.max_new_tokens);
  MILLRACE_CHECK_OK(validate(request.sampling, config.vocab));

  const auto prompt_tokens = static_cast<std::int64_t>(request.prompt.size());
  const std::int64_t room = runner_->max_sequence_tokens();
  if (prompt_tokens >= room) {
    return fail(
        "the prompt has {} tokens, but a sequence may have {} here, its answer included (KV memory holds {}, the "
        "model's context is {})",
        prompt_tokens, room, runner_->cache().token_capacity(), config.max_position);
  }
  request.max_new_tokens = std::min(request.max_new_tokens, room - prompt_tokens);

  const SequenceId id = next_id_++;
  MILLRACE_CHECK_OK(scheduler_.add(id, prompt_tokens, prompt_tokens + request.max_new_tokens));
  auto running = std::make_unique<Running>();
  running->sequence = {id, request.prompt, prompt_tokens, runner_->cache().make_tables()};
  for (const std::int32_t token : request.prompt) running->counts.add_prompt(token);
  running->stop_strings = StopStrings(request.stop);
  if (tokenizer_ != nullptr) running->detokenizer = std::make_unique<Detokenizer>(*tokenizer_);
  running->request = std::move(request);
  running->sink = std::move(sink);
  running->submitted = Clock::now();
  running_.emplace(id, std::move(running));
  return id;
}

void Engine::cancel(SequenceId id) {
  if (running_.contains(id)) finish(id, {.id = id, .finish = FinishReason::cancelled});
}

bool Engine::step() {
  finished_.clear();
  const StepPlan plan = scheduler_.schedule();
  if (plan.empty()) {
    MILLRACE_CHECK(scheduler_.idle(), "sequences wait and none can run");
    return false;
  }
  const auto find = [this](SequenceId id) -> Sequence& { return running_.at(id)->sequence; };
  const ForwardBatch batch = make_forward_batch(plan, windows_, false, find);
  const std::span<float> logits = runner_->run(batch);
  scheduler_.commit(plan);

  const auto vocab = static_cast<std::size_t>(runner_->config().vocab);
  std::size_t row = 0;
  for (const StepEntry& entry : plan.entries) {
    if (!entry.samples) continue;
    const std::span<float> row_logits = logits.subspan(row++ * vocab, vocab);
    const auto found = running_.find(entry.id);
    if (found == running_.end()) continue;  // cancelled by the sink of another sequence in this very step
    Running& running = *found->second;
    const auto position = static_cast<std::int64_t>(running.sequence.tokens.size());
    take_token(running, sample(row_logits, running.request.sampling, running.counts, position));
  }
  return true;
}

void Engine::take_token(Running& running, std::int32_t token) {
  running.sequence.tokens.push_back(token);
  running.counts.add_generated(token);
  running.last_token = Clock::now();
  if (running.generated++ == 0) running.first_token = running.last_token;

  TokenEvent event{.id = running.sequence.id, .token = token};
  const std::vector<std::int32_t>& stop_ids = running.request.stop_ids;
  const bool ended = std::find(stop_ids.begin(), stop_ids.end(), token) != stop_ids.end();
  if (running.detokenizer != nullptr && !ended) {
    event.text = running.stop_strings.push(running.detokenizer->push(token));
  }
  if (ended || running.stop_strings.stopped()) {
    event.finish = FinishReason::stop;
  } else if (running.generated >= running.request.max_new_tokens) {
    event.finish = FinishReason::length;
  }
  if (event.finish == FinishReason::none) {
    running.sink(event);
  } else {
    finish(running.sequence.id, std::move(event));
  }
}

void Engine::finish(SequenceId id, TokenEvent event) {
  // Its last event may come from within an earlier one, when a sink cancels its own request: the request lives on until
  // the next step.
  auto node = running_.extract(id);
  Running& running = *finished_.emplace_back(std::move(node.mapped()));
  if (running.detokenizer != nullptr && !running.stop_strings.stopped()) {
    event.text += running.stop_strings.push(running.detokenizer->finish());
    event.text += running.stop_strings.finish();
    if (running.stop_strings.stopped()) event.finish = FinishReason::stop;
  }
  scheduler_.finish(id);
  running.sink(event);
}

RequestTimes Engine::times(SequenceId id) const {
  const auto ended =
      std::find_if(finished_.begin(), finished_.end(), [id](const auto& r) { return r->sequence.id == id; });
  const Running& running = ended != finished_.end() ? **ended : *running_.at(id);
  RequestTimes times;
  if (running.generated > 0) times.ttft = seconds(running.first_token - running.submitted);
  if (running.generated > 1) {
    times.tpot = seconds(running.last_token - running.first_token) / static_cast<double>(running.generated - 1);
  }
  return times;
}

}  // namespace millrace
