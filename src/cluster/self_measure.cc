#include "cluster/self_measure.h"

#include <algorithm>
#include <future>
#include <memory>
#include <vector>

namespace millrace {

namespace {

constexpr std::int64_t kPrompt = 512, kAnswer = 24, kTogether = 4;

/// Requests that run at once, and what they took on the average.
struct Timed {
  double ttft = 0.0, tpot = 0.0;  // seconds
};

Result<Timed> run(Engine& engine, std::int64_t count, std::int64_t prompt, std::int64_t vocab) {
  std::vector<std::future<Result<RequestSummary>>> answers;
  for (std::int64_t i = 0; i < count; ++i) {
    Request request;
    for (std::int64_t at = 0; at < prompt; ++at) {
      request.prompt.push_back(static_cast<std::int32_t>((at * 7919 + i * 104729) % vocab));
    }
    request.max_new_tokens = kAnswer;
    request.cache_salt = "measured by itself " + std::to_string(count) + " " + std::to_string(i);
    const auto promise = std::make_shared<std::promise<Result<RequestSummary>>>();
    answers.push_back(promise->get_future());
    const auto submitted = engine.submit(std::move(request), [promise](const TokenEvent& event) {
      if (event.summary == nullptr) return Demand::more;
      if (event.finish == FinishReason::error) {
        promise->set_value(fail("{}", event.error));
      } else {
        promise->set_value(*event.summary);
      }
      return Demand::more;
    });
    if (!submitted.ok()) return submitted.error();
  }
  Timed timed;
  for (auto& answer : answers) {
    MILLRACE_TRY(const RequestSummary summary, answer.get());
    timed.ttft += summary.ttft / static_cast<double>(count);
    timed.tpot += summary.tpot / static_cast<double>(count);
  }
  return timed;
}

}  // namespace

Result<NodeSpeed> measure_speed(Engine& engine, std::int64_t vocab, std::int64_t context, std::int64_t sequences) {
  constexpr std::int64_t kShort = 8;
  const std::int64_t prompt = std::clamp<std::int64_t>(context - kAnswer - 1, 1, kPrompt);
  MILLRACE_CHECK_OK(run(engine, 1, kShort, vocab));  // what is made at the first use is made now
  MILLRACE_TRY(const Timed alone, run(engine, 1, prompt, vocab));
  NodeSpeed speed{.step = std::max(alone.tpot, 1e-6), .step_per_sequence = 0.0};
  speed.prefill = static_cast<double>(prompt) / std::max(alone.ttft - speed.step, alone.ttft / 10.0);
  const std::int64_t together = std::min(kTogether, sequences);
  if (together > 1) {
    MILLRACE_TRY(const Timed many, run(engine, together, std::min(kShort, prompt), vocab));
    speed.step_per_sequence = std::clamp((many.tpot - alone.tpot) / static_cast<double>(together - 1), 0.0, speed.step);
  }
  return speed;
}

}  // namespace millrace
