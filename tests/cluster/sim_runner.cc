#include "sim_runner.h"

#include <algorithm>
#include <utility>

#include "core/fnv.h"

namespace millrace::test {

namespace {

bool has_ended(const Placement& placement, const std::vector<std::int32_t>& tokens) {
  return static_cast<std::int64_t>(tokens.size()) >= placement.max_new_tokens ||
         (!tokens.empty() && std::ranges::find(placement.stop_ids, tokens.back()) != placement.stop_ids.end());
}

FinishReason end_reason(const Placement& placement, const std::vector<std::int32_t>& tokens) {
  const bool stopped =
      !tokens.empty() && std::ranges::find(placement.stop_ids, tokens.back()) != placement.stop_ids.end();
  return stopped ? FinishReason::stop : FinishReason::length;
}

}  // namespace

std::int32_t sim_token(const std::string& numeric_class, const Placement& placement, std::size_t choice,
                       const std::vector<std::int32_t>& tokens) {
  Fnv1a hash;
  hash.add(numeric_class);
  hash.add(placement.sampling.seed);
  hash.add(choice);
  for (const std::int32_t token : placement.prompt) hash.add(static_cast<std::uint64_t>(token));
  for (const std::int32_t token : tokens) hash.add(static_cast<std::uint64_t>(token));
  return static_cast<std::int32_t>((hash.value() >> 16) % kSimVocab);
}

std::vector<std::int32_t> sim_answer(const std::string& numeric_class, const Placement& placement, std::size_t choice) {
  std::vector<std::int32_t> tokens;
  while (!has_ended(placement, tokens)) tokens.push_back(sim_token(numeric_class, placement, choice, tokens));
  return tokens;
}

std::vector<float> sim_embedding(const Placement& placement) {
  std::vector<float> embedding;
  for (std::int64_t i = 0; i < kSimHidden; ++i) {
    Fnv1a hash;
    hash.add(static_cast<std::uint64_t>(i));
    for (const std::int32_t token : placement.prompt) hash.add(static_cast<std::uint64_t>(token));
    embedding.push_back(static_cast<float>(hash.value() >> 40));
  }
  return embedding;
}

SimRunner::SimRunner(Transport& transport, std::string model, std::string numeric_class, Duration step,
                     std::size_t slots)
    : transport_(&transport), model_(std::move(model)), class_(std::move(numeric_class)), step_(step), slots_(slots) {}

SimRunner::~SimRunner() {
  if (timer_) transport_->cancel(*timer_);
}

void SimRunner::start(RunId id, Placement placement, Sink sink) {
  const bool mine = placement.model == model_ && placement.numeric_class == class_;
  transport_->after(Duration{0}, [this, id, mine] {
    const auto run = runs_.find(id);
    if (run == runs_.end()) return;
    const Sink tell = run->second.sink;
    run->second.accepted = true;
    if (mine) {
      tell({Accepted{}});
    } else {
      runs_.erase(run);
      tell({AttemptFailed{ErrorKind::unavailable, "not this model, or not of this class"}});
    }
  });
  runs_[id] = {std::move(placement), std::move(sink)};
  if (!timer_) timer_ = transport_->after(step_, [this] { step(); });
}

void SimRunner::paused(RunId id, bool is) {
  if (const auto run = runs_.find(id); run != runs_.end()) run->second.paused = is;
}

void SimRunner::cancel(RunId id) {
  runs_.erase(id);
}

bool SimRunner::advance(Run& run, std::vector<StreamEvent>& events) const {
  if (run.placement.task != Task::generate) {
    const std::vector<float> embedding = sim_embedding(run.placement);
    const auto from = embedding.begin() + static_cast<std::ptrdiff_t>(run.numbers);
    events.emplace_back(EmbeddingCame{{from, from + kSimHiddenAStep}});
    run.numbers += static_cast<std::size_t>(kSimHiddenAStep);
    if (run.numbers < embedding.size()) return false;
    events.emplace_back(ChoiceEnd{0, FinishReason::stop});
    return true;
  }
  for (std::size_t c = 0; c < run.placement.choices.size(); ++c) {
    PlacedChoice& choice = run.placement.choices[c];
    if (choice.ended) continue;
    if (!has_ended(run.placement, choice.tokens)) {
      choice.tokens.push_back(sim_token(class_, run.placement, c, choice.tokens));
      events.emplace_back(TokenCame{.choice = static_cast<std::int32_t>(c), .token = choice.tokens.back()});
    }
    if (!has_ended(run.placement, choice.tokens)) continue;
    choice.ended = true;
    events.emplace_back(ChoiceEnd{static_cast<std::int32_t>(c), end_reason(run.placement, choice.tokens)});
  }
  return std::ranges::all_of(run.placement.choices, &PlacedChoice::ended);
}

void SimRunner::step() {
  timer_.reset();
  std::size_t running = 0;
  std::vector<RunId> ids;
  for (auto& [id, run] : runs_) running += run.running ? 1 : 0;
  for (auto& [id, run] : runs_) {
    if (run.accepted && !run.running && running < slots_) {
      run.running = true;
      ++running;
    }
    if (run.running && !run.paused) ids.push_back(id);
  }
  for (const RunId id : ids) {
    const auto run = runs_.find(id);
    if (run == runs_.end()) continue;
    std::vector<StreamEvent> events;
    const Sink tell = run->second.sink;
    if (advance(run->second, events)) runs_.erase(run);
    tell(std::move(events));
  }
  if (!runs_.empty() && !timer_) timer_ = transport_->after(step_, [this] { step(); });
}

}  // namespace millrace::test
