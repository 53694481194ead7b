#include "engine/engine_core.h"

#include <algorithm>
#include <string>
#include <utility>

#include "core/check.h"
#include "runtime/shared_prefix.h"
#include "runtime/step_batch.h"

namespace millrace {

namespace {

double seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

/// Adds the time since the last lap to `part`.
class Lap {
 public:
  void take(double& part) {
    const auto now = EngineCore::Clock::now();
    part += seconds(now - last_);
    last_ = now;
  }

 private:
  EngineCore::Clock::time_point last_ = EngineCore::Clock::now();
};

/// Brings sequences with the same leading pages side by side, where find_shared_prefixes looks for them.
void sort_by_pages(StepPlan& plan, const Scheduler& scheduler) {
  if (plan.entries.size() < 2) return;
  const auto pages = [&](const StepEntry& entry) { return scheduler.sequence(entry).tables.front().entries(); };
  std::ranges::stable_sort(plan.entries, [&](const StepEntry& a, const StepEntry& b) {
    const std::span<const std::int32_t> left = pages(a), right = pages(b);
    return std::lexicographical_compare(left.begin(), left.end(), right.begin(), right.end());
  });
}

bool embeds(const Request& request) {
  return request.task != Task::generate;
}

}  // namespace

EngineCore::EngineCore(ModelRunner& runner, const Tokenizer* tokenizer, EngineOptions options)
    : runner_(&runner),
      tokenizer_(tokenizer),
      options_(std::move(options)),
      scheduler_(scheduler_limits(runner, options_.prefix_cache)),
      windows_(runner.cache().windows()) {}

EngineCore::~EngineCore() = default;

/// The most tokens of a sequence that keeps the first `pinned` for ever. Beyond the model's context, in whole pages,
/// there is room only for what stays within it.
std::int64_t EngineCore::sequence_room(std::int64_t pinned) const {
  const std::int64_t all = runner_->max_sequence_tokens(), context = runner_->config().max_position;
  if (all <= context || !runner_->policy().keep) return all;
  const std::int32_t page_tokens = runner_->cache().layout().page_tokens;
  const Retention retention(*runner_->policy().keep, windows_, page_tokens, 0, pinned);
  return retention.kept_pages() < context / page_tokens ? all : context / page_tokens * page_tokens;
}

Status EngineCore::prepare(Request& request) const {
  const ModelConfig& config = runner_->config();
  if (request.prompt.empty()) return fail("the prompt has no tokens");
  for (const std::int32_t token : request.prompt) {
    if (token < 0 || token >= config.vocab) {
      return fail("token id {} is outside the vocabulary of {} tokens", token, config.vocab);
    }
  }
  const auto prompt_tokens = static_cast<std::int64_t>(request.prompt.size());
  request.pinned_tokens = std::clamp<std::int64_t>(request.pinned_tokens, 0, prompt_tokens);
  const std::int64_t room = sequence_room(request.pinned_tokens);
  const std::int64_t least = embeds(request) || request.max_new_tokens == 0 ? 0 : 1;
  if (prompt_tokens + least > room || prompt_tokens > runner_->max_prompt_tokens()) {
    return fail(
        "the prompt has {} tokens, but a sequence may have {} here, its answer included, and a prompt {} (KV memory "
        "holds {}, the model's context is {})",
        prompt_tokens, room, runner_->max_prompt_tokens(), runner_->cache().token_capacity(), config.max_position);
  }
  MILLRACE_CHECK_OK(check_begun(request, config.vocab, room - prompt_tokens));
  if (embeds(request)) return Ok{};
  if (request.max_new_tokens < 0) return fail("max_new_tokens is {}, expected 0 or more", request.max_new_tokens);
  request.max_new_tokens = std::min(request.max_new_tokens, room - prompt_tokens);
  if (request.choices < 1 || request.choices > 128) {
    return fail("{} choices are asked for, expected 1 to 128", request.choices);
  }
  if (!request.stop.empty() && tokenizer_ == nullptr) return fail("stop strings need a tokenizer, and there is none");
  return validate(request.sampling, config.vocab);
}

void EngineCore::submit(RequestId id, Request request, Sink sink, Clock::time_point submitted) {
  MILLRACE_CHECK(!requests_.contains(id), "request {} exists", id);
  auto state = std::make_unique<RequestState>();
  RequestState& r = *state;
  r.id = id;
  r.request = std::move(request);
  r.sink = std::move(sink);
  r.submitted = submitted;
  const bool embed = embeds(r.request);
  const auto choices = static_cast<std::size_t>(embed ? 1 : r.request.choices);
  r.unfinished = choices;
  r.choices.resize(choices);
  const auto prompt_tokens = static_cast<std::int64_t>(r.request.prompt.size());
  // One process runs one model with one recipe, so they need no place in the name.
  std::vector<TakenToken> caught_up(r.request.begun.size());
  const std::string cache_name = rope_regime(runner_->config(), prompt_tokens) + '/' + r.request.cache_salt;
  for (std::size_t c = 0; c < choices; ++c) {
    ChoiceState& choice = r.choices[c];
    choice.request = &r;
    choice.sequence = next_sequence_++;
    choice.sampling = r.request.sampling;
    choice.sampling.choice = static_cast<std::uint32_t>(c);
    if (!r.request.begun.empty() && r.request.begun[c].ended) {
      choice.finish = FinishReason::stop;
      --r.unfinished;
      continue;
    }
    if (!embed) choice.text = AnswerText(tokenizer_, r.request.special_text, r.request.stop);
    if (r.request.grammar != nullptr) choice.grammar = r.request.grammar->start();
    if (needs_counts(choice.sampling)) {
      for (const std::int32_t token : r.request.prompt) choice.counts.add_prompt(token);
    }
    std::vector<std::int32_t> tokens = r.request.prompt;
    if (!r.request.begun.empty()) {
      const BegunAnswer& begun = r.request.begun[c];
      tokens.insert(tokens.end(), begun.tokens.begin(), begun.tokens.end());
      choice.reported = begun.prompt_reported;
      for (const std::int32_t token : begun.tokens) {
        caught_up[c] = take_token(choice, token);
        if (caught_up[c].finish != FinishReason::none || !caught_up[c].error.empty()) break;
      }
    }
    const bool all_logits = r.request.prompt_logprobs && c == 0 && !embed && choice.reported < prompt_tokens;
    const auto answer_tokens = static_cast<std::int64_t>(tokens.size()) - prompt_tokens;
    const Status added =
        scheduler_.add(choice.sequence, {.tokens = std::move(tokens),
                                         .max_tokens = embed ? prompt_tokens : prompt_tokens + r.request.max_new_tokens,
                                         .answer_tokens = answer_tokens,
                                         .priority = r.request.priority,
                                         .cache_name = cache_name,
                                         .samples = !embed,
                                         .all_logits = all_logits,
                                         .shares = r.request.task != Task::embed_mean,
                                         .pinned_tokens = r.request.pinned_tokens});
    MILLRACE_CHECK(added.ok(), "a request that was prepared: {}", added.ok() ? "" : added.error().message);
    sequences_.emplace(choice.sequence, &choice);
  }
  requests_.emplace(id, std::move(state));
  // An answer may have had all but the word that it has ended.
  for (std::size_t c = 0; c < caught_up.size() && requests_.contains(id); ++c) {
    TakenToken& last = caught_up[c];
    if (!last.error.empty()) last.finish = FinishReason::error;
    if (last.finish != FinishReason::none)
      finish(r.choices[c], {.finish = last.finish, .error = std::move(last.error)});
  }
}

void EngineCore::cancel(RequestId id) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  RequestState& request = *found->second;
  for (ChoiceState& choice : request.choices) {
    if (choice.finish == FinishReason::none) finish(choice, {.finish = FinishReason::cancelled});
  }
}

void EngineCore::cancel_all() {
  while (!requests_.empty()) cancel(requests_.begin()->first);
}

void EngineCore::resume(RequestId id, std::int32_t choice) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  const ChoiceState& paused = found->second->choices.at(static_cast<std::size_t>(choice));
  if (paused.finish == FinishReason::none) scheduler_.hold(paused.sequence, false);
}

bool EngineCore::step() {
  finished_.clear();
  report_ = {};
  inter_token_.clear();
  Lap lap;
  StepPlan plan = scheduler_.schedule();
  lap.take(report_.schedule);
  if (plan.empty()) return false;
  if (plan.entries.empty()) {  // someone made room, and the next step finds it
    runner_->cache().copy(plan.copies);
    return true;
  }

  const ForwardBatch batch = prepare_batch(plan);
  runner_->cache().copy(plan.copies);
  lap.take(report_.prepare);
  const Result<ModelRunner::Outcome> outcome = runner_->run(batch, device_draws(plan));
  lap.take(report_.forward);
  if (!outcome.ok()) {
    report_.failure = outcome.error().message;
    fail_step(plan, outcome.error().message);
    lap.take(report_.stream);
    report_step(plan);
    return true;
  }
  if (batch.wants_hidden) pool_rows(plan);
  sample_rows(plan, *outcome);
  std::vector<std::int32_t> tokens;
  for (const Sampled& sampled : sampled_) tokens.push_back(sampled.token);
  lap.take(report_.sample);
  if (options_.on_computed) options_.on_computed(report_);
  scheduler_.commit(plan, tokens, &masses_);
  lap.take(report_.schedule);
  for (const Sampled& sampled : sampled_) deliver(sampled);
  end_prompts(plan);
  lap.take(report_.stream);
  report_.prompt_tokens = report_.prefill_rows;
  report_.generated_tokens = static_cast<std::int64_t>(sampled_.size());
  report_step(plan);
  return true;
}

/// Sequences that were no part of the step, but have been given what it was to store, are computed again.
void EngineCore::fail_step(const StepPlan& plan, const std::string& reason) {
  scheduler_.abandon(plan);
  for (const StepEntry& entry : plan.entries) {
    const auto found = sequences_.find(entry.id);
    if (found == sequences_.end()) continue;  // cancelled by the sink of another one
    finish(*found->second, {.finish = FinishReason::error, .error = reason, .of_step = true});
  }
}

void EngineCore::report_step(const StepPlan& plan) {
  if (!options_.on_step) return;
  const Scheduler::Counters& after = scheduler_.counters();
  const Scheduler::Counters before = std::exchange(reported_, after);
  report_.rows = report_.prefill_rows + report_.decode_rows;
  report_.sequences = static_cast<std::int64_t>(plan.entries.size());
  report_.running = scheduler_.running();
  report_.waiting = scheduler_.waiting();
  report_.kv = scheduler_.kv_use();
  report_.preemptions = after.preemptions - before.preemptions;
  report_.swaps = after.swaps - before.swaps;
  report_.dropped_pages = after.dropped_pages - before.dropped_pages;
  report_.freed_pages = after.freed_pages - before.freed_pages;
  report_.prefix_queries = after.admitted_tokens - before.admitted_tokens;
  report_.prefix_hits = after.cached_tokens - before.cached_tokens;
  report_.inter_token = inter_token_;
  options_.on_step(report_);
}

ForwardBatch EngineCore::prepare_batch(StepPlan& plan) {
  if (options_.prefix_cache) sort_by_pages(plan, scheduler_);
  bool hidden = false;
  const auto now = Clock::now();
  for (const StepEntry& entry : plan.entries) {
    ChoiceState& choice = *sequences_.at(entry.id);
    RequestState& request = *choice.request;
    hidden = hidden || embeds(request.request);
    const std::int64_t prompt_tokens = static_cast<std::int64_t>(request.request.prompt.size());
    const std::int64_t of_prompt = std::clamp<std::int64_t>(prompt_tokens - entry.first_position, 0, entry.rows);
    report_.prefill_rows += of_prompt;
    report_.decode_rows += entry.rows - of_prompt;
    if (request.has_started) continue;
    request.has_started = true;
    request.started = now;
  }
  const std::int32_t page_tokens = runner_->cache().layout().page_tokens;
  const auto view = [this](const StepEntry& entry) { return scheduler_.sequence(entry); };
  ForwardBatch batch = make_forward_batch(plan, page_tokens, view, masses_);
  batch.wants_hidden = hidden;
  if (options_.prefix_cache) batch.shared = find_shared_prefixes(batch, page_tokens, windows_);
  return batch;
}

std::span<const std::optional<TokenDraw>> EngineCore::device_draws(const StepPlan& plan) {
  draws_.clear();
  for (const StepEntry& entry : plan.entries) {
    if (entry.all_logits) draws_.resize(draws_.size() + static_cast<std::size_t>(entry.rows));
    if (entry.all_logits || !entry.samples) continue;
    const ChoiceState& choice = *sequences_.at(entry.id);
    const bool plain = !choice.grammar && choice.request->request.logprobs < 0;
    draws_.push_back(plain ? device_draw(choice.sampling, entry.first_position + entry.rows) : std::nullopt);
  }
  return draws_;
}

void EngineCore::sample_rows(const StepPlan& plan, const ModelRunner::Outcome& outcome) {
  sampled_.clear();
  const auto vocab = static_cast<std::size_t>(runner_->config().vocab);
  std::size_t first = 0;
  for (const StepEntry& entry : plan.entries) {
    const std::size_t rows = entry.all_logits ? static_cast<std::size_t>(entry.rows) : entry.samples ? 1 : 0;
    if (rows == 0) continue;
    const std::span<float> own = outcome.logits.subspan(first * vocab, rows * vocab);
    first += rows;
    const auto choice = sequences_.find(entry.id);
    if (choice != sequences_.end() && entry.all_logits) report_prompt(*choice->second, entry, own);
    if (!entry.samples) continue;
    // Cancelled by a sink that was told of a prompt, in this very step: a token is drawn for it, and dropped.
    const std::int32_t drawn = sequences_.contains(entry.id) ? outcome.tokens[first - 1] : 0;
    sampled_.push_back(drawn >= 0 ? Sampled{.id = entry.id, .token = drawn}
                                  : sample_row(*choice->second, entry, own.last(vocab)));
  }
}

EngineCore::Sampled EngineCore::sample_row(ChoiceState& choice, const StepEntry& entry, std::span<float> logits) {
  Sampled sampled{.id = entry.id};
  std::span<const std::uint32_t> allowed;
  if (choice.grammar) {
    allowed_.resize((logits.size() + 31) / 32);
    const Status masked = choice.grammar->mask(allowed_);
    if (masked.ok()) {
      allowed = allowed_;
    } else {
      sampled.error = masked.error().message;
    }
  }
  const std::int32_t wanted = choice.request->request.logprobs;
  const std::int64_t position = entry.first_position + entry.rows;
  if (wanted >= 0) {
    SampledToken drawn =
        sample_with_logprobs(logits, choice.sampling, choice.counts, position, allowed, wanted, scratch_);
    sampled.token = drawn.token;
    sampled.logprobs = std::move(drawn.logprobs);
  } else {
    sampled.token = sample(logits, choice.sampling, choice.counts, position, allowed, scratch_);
  }
  return sampled;
}

void EngineCore::report_prompt(ChoiceState& choice, const StepEntry& entry, std::span<const float> logits) {
  const Request& request = choice.request->request;
  const auto vocab = static_cast<std::size_t>(runner_->config().vocab);
  const auto report = [&](std::int64_t position, std::optional<TokenLogprobs> logprobs) {
    if (position != choice.reported) return;          // computed again after a preemption
    if (choice.finish != FinishReason::none) return;  // cancelled by its own sink
    ++choice.reported;
    emit(choice, {.token = request.prompt[static_cast<std::size_t>(position)],
                  .of_prompt = true,
                  .logprobs = std::move(logprobs)});
  };
  if (entry.first_position == 0) report(0, std::nullopt);
  for (std::int64_t r = 0; r < entry.rows; ++r) {
    const std::int64_t position = entry.first_position + r + 1;  // of the token that row r predicts
    if (position >= static_cast<std::int64_t>(request.prompt.size())) break;
    report(position,
           token_logprobs(logits.subspan(static_cast<std::size_t>(r) * vocab, vocab),
                          request.prompt[static_cast<std::size_t>(position)], std::max(0, request.logprobs), scratch_));
  }
}

void EngineCore::pool_rows(const StepPlan& plan) {
  const std::span<const float> hidden = runner_->hidden();
  const auto width = static_cast<std::size_t>(runner_->config().hidden);
  std::size_t first = 0;
  for (const StepEntry& entry : plan.entries) {
    ChoiceState& choice = *sequences_.at(entry.id);
    const Task task = choice.request->request.task;
    for (std::int32_t r = 0; r < entry.rows && task != Task::generate; ++r) {
      const std::span<const float> row = hidden.subspan((first + static_cast<std::size_t>(r)) * width, width);
      if (task == Task::embed_last) {
        choice.pool.assign(row.begin(), row.end());
      } else if (entry.first_position + r == choice.pooled) {  // else computed again after a preemption
        choice.pool.resize(width);
        for (std::size_t i = 0; i < width; ++i) choice.pool[i] += static_cast<double>(row[i]);
        ++choice.pooled;
      }
    }
    first += static_cast<std::size_t>(entry.rows);
  }
}

void EngineCore::deliver(const Sampled& sampled) {
  const auto found = sequences_.find(sampled.id);
  if (found == sequences_.end()) return;  // cancelled by the sink of another one, in this very step
  ChoiceState& choice = *found->second;
  const auto now = Clock::now();
  if (!sampled.error.empty()) {
    finish(choice, {.finish = FinishReason::error, .error = sampled.error, .error_kind = ErrorKind::invalid});
    return;
  }
  if (choice.first_token == Clock::time_point{}) {
    choice.first_token = now;
  } else {
    inter_token_.push_back(seconds(now - choice.last_token));
    ++choice.later_tokens;
  }
  choice.last_token = now;
  TakenToken taken = take_token(choice, sampled.token);
  if (!taken.error.empty()) {
    finish(choice, {.finish = FinishReason::error, .error = std::move(taken.error), .error_kind = ErrorKind::invalid});
    return;
  }
  TokenEvent event{
      .token = sampled.token, .text = std::move(taken.text), .logprobs = sampled.logprobs, .finish = taken.finish};
  if (event.finish == FinishReason::none) {
    emit(choice, std::move(event));
  } else {
    finish(choice, std::move(event));
  }
}

void EngineCore::end_prompts(const StepPlan& plan) {
  for (const StepEntry& entry : plan.entries) {
    const auto found = sequences_.find(entry.id);
    if (found == sequences_.end()) continue;
    ChoiceState& choice = *found->second;
    const Request& request = choice.request->request;
    const std::int64_t end = entry.first_position + entry.rows;
    if (entry.samples || end < static_cast<std::int64_t>(request.prompt.size())) continue;
    if (embeds(request)) {
      const double count = request.task == Task::embed_mean ? static_cast<double>(choice.pooled) : 1.0;
      TokenEvent event{.finish = FinishReason::stop};
      for (const double sum : choice.pool) event.embedding.push_back(static_cast<float>(sum / count));
      finish(choice, std::move(event));
    } else if (request.max_new_tokens == 0) {
      finish(choice, {.finish = FinishReason::length});
    }
  }
}

void EngineCore::emit(ChoiceState& choice, TokenEvent event) {
  event.request = choice.request->id;
  event.choice = static_cast<std::int32_t>(choice.sampling.choice);
  const SequenceId sequence = choice.sequence;
  const Demand demand = choice.request->sink(event);
  // The sink may have cancelled this very request.
  if (demand == Demand::pause && sequences_.contains(sequence)) scheduler_.hold(sequence, true);
}

void EngineCore::finish(ChoiceState& choice, TokenEvent event) {
  RequestState& request = *choice.request;
  if (!choice.text.stopped()) {
    event.text += choice.text.finish();
    if (choice.text.stopped()) event.finish = FinishReason::stop;
  }
  choice.finish = event.finish;
  event.stop_string = choice.text.found();
  event.request = request.id;
  event.choice = static_cast<std::int32_t>(choice.sampling.choice);
  if (choice.sampling.choice == 0) request.cached_tokens = scheduler_.cached_tokens(choice.sequence);
  sequences_.erase(choice.sequence);
  scheduler_.finish(choice.sequence);
  if (--request.unfinished > 0) {
    request.sink(event);
    return;
  }
  // The last event may come from within an earlier one, when a sink cancels its own request: the request lives on until
  // the next step.
  auto node = requests_.extract(request.id);
  finished_.push_back(std::move(node.mapped()));
  const RequestSummary summary = summarize(request);
  event.summary = &summary;
  if (options_.on_request) options_.on_request({summary, request.choices.front().finish});
  request.sink(event);
}

RequestSummary EngineCore::summarize(const RequestState& request) const {
  const auto now = Clock::now();
  RequestSummary summary{.prompt_tokens = static_cast<std::int64_t>(request.request.prompt.size()),
                         .cached_tokens = request.cached_tokens,
                         .total = seconds(now - request.submitted)};
  summary.queued = request.has_started ? seconds(request.started - request.submitted) : summary.total;
  double decoding = 0.0;
  std::int64_t later_tokens = 0;
  for (const ChoiceState& choice : request.choices) {
    summary.generated_tokens += choice.generated;
    if (choice.first_token == Clock::time_point{}) continue;
    const double ttft = seconds(choice.first_token - request.submitted);
    summary.ttft = summary.ttft == 0.0 ? ttft : std::min(summary.ttft, ttft);
    decoding += seconds(choice.last_token - choice.first_token);
    later_tokens += choice.later_tokens;
  }
  if (later_tokens > 0) summary.tpot = decoding / static_cast<double>(later_tokens);
  return summary;
}

EngineSnapshot EngineCore::snapshot() const {
  return {.running = scheduler_.running(),
          .waiting = scheduler_.waiting(),
          .prompt_tokens_left = scheduler_.prompt_tokens_left(),
          .kv = scheduler_.kv_use()};
}

}  // namespace millrace
