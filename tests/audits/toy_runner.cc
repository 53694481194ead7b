#include "toy_runner.h"

#include <cmath>
#include <utility>

#include "core/philox.h"
#include "runtime/sampler.h"

namespace millrace::test {

namespace {

/// Normally distributed (Box and Muller 1958), the same for the same arguments.
double normal(std::uint64_t key, std::uint32_t stream, std::uint64_t index) {
  const auto a = static_cast<double>(philox_uniform(key, stream, 2 * index));
  const auto b = static_cast<double>(philox_uniform(key, stream, 2 * index + 1));
  return std::sqrt(-2.0 * std::log(1.0 - a)) * std::cos(6.283185307179586 * b);
}

}  // namespace

std::vector<float> ToyRunner::logits(const std::vector<std::int32_t>& tokens) const {
  const auto last = static_cast<std::uint64_t>(tokens.back());
  const std::uint64_t before = tokens.size() > 1 ? static_cast<std::uint64_t>(tokens[tokens.size() - 2]) : 0;
  const std::uint64_t place = (before * kToyVocab + last) * kToyVocab;
  std::vector<float> row(kToyVocab);
  for (std::uint64_t token = 0; token < kToyVocab; ++token) {
    const double exact = 3.0 * normal(model_.weights, 0, place + token);
    const double off = model_.error > 0.0 ? model_.error * normal(model_.weights, 1, place + token) : 0.0;
    row[token] = static_cast<float>(exact + off);
  }
  return row;
}

void ToyRunner::start(RunId id, Placement placement, Sink sink) {
  runs_[id] = {std::move(placement), std::move(sink)};
  transport_->after(std::chrono::milliseconds(5), [this, id] { finish(id); });
}

void ToyRunner::finish(RunId id) {
  auto found = runs_.extract(id);
  if (found.empty()) return;
  Placement& work = found.mapped().placement;
  const Sink& tell = found.mapped().sink;
  if (work.numeric_class != class_) {
    tell({AttemptFailed{ErrorKind::unavailable, "another class"}});
    return;
  }
  std::vector<StreamEvent> events{Accepted{}};
  if (work.prompt_logprobs) {
    ++scorings_;
    for (auto at = static_cast<std::size_t>(work.choices[0].prompt_reported); at < work.prompt.size(); ++at) {
      TokenCame came{.token = work.prompt[at], .of_prompt = true};
      if (at > 0) {
        const auto end = work.prompt.begin() + static_cast<std::ptrdiff_t>(at);
        came.logprobs = token_logprobs(logits({work.prompt.begin(), end}), work.prompt[at], work.logprobs);
      }
      events.emplace_back(std::move(came));
    }
  }
  for (std::size_t c = 0; c < work.choices.size(); ++c) {
    if (work.choices[c].ended) continue;
    std::vector<std::int32_t> tokens = work.prompt;
    tokens.insert(tokens.end(), work.choices[c].tokens.begin(), work.choices[c].tokens.end());
    SamplingParams sampling = work.sampling;
    sampling.choice = static_cast<std::uint32_t>(c);
    const std::size_t all = work.prompt.size() + static_cast<std::size_t>(work.max_new_tokens);
    while (tokens.size() < all) {
      std::vector<float> row = logits(tokens);
      tokens.push_back(sample(row, sampling, {}, static_cast<std::int64_t>(tokens.size())));
      events.emplace_back(TokenCame{.choice = static_cast<std::int32_t>(c), .token = tokens.back()});
    }
    events.emplace_back(ChoiceEnd{static_cast<std::int32_t>(c), FinishReason::length, 0});
  }
  tell(std::move(events));
}

}  // namespace millrace::test
