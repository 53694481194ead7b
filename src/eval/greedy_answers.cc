#include "eval/greedy_answers.h"

#include <algorithm>
#include <utility>

#include "engine/engine_core.h"
#include "eval/task.h"

namespace millrace {

namespace {

/// Greedy, as a request has it where nothing is said.
Result<Request> make_request(const EngineCore& engine, const GenerationQuestion& question) {
  Request request;
  request.prompt = question.prompt;
  request.max_new_tokens = question.max_new_tokens;
  request.stop = question.stop;
  request.stop_ids = question.stop_ids;
  MILLRACE_CHECK_OK(engine.prepare(request));
  return request;
}

}  // namespace

Status generate_answers(ModelRunner& runner, const Tokenizer& tokenizer,
                        std::span<const GenerationQuestion* const> questions, const TakeAnswer& take) {
  // As many wait as run, so that a step is full and few prompts are copied ahead.
  const auto at_once = static_cast<std::size_t>(2 * std::min(runner.limits().max_logit_rows, runner.limits().max_rows));
  std::vector<std::string> texts(questions.size());
  std::vector<std::size_t> ended;
  Status failed = Ok{};
  EngineCore engine(runner, &tokenizer);  // behind what its sinks point to
  std::size_t submitted = 0, taken = 0;
  while (taken < questions.size()) {
    for (; submitted < questions.size() && submitted - taken < at_once; ++submitted) {
      MILLRACE_TRY(Request request, make_request(engine, *questions[submitted]));
      const auto sink = [&, index = submitted](const TokenEvent& event) {
        texts[index] += event.text;
        if (event.finish == FinishReason::error) failed = fail("{}", event.error);
        if (event.finish != FinishReason::none) ended.push_back(index);
        return Demand::more;
      };
      engine.submit(submitted, std::move(request), sink, EngineCore::Clock::now());
    }
    engine.step();
    MILLRACE_CHECK_OK(failed);
    for (const std::size_t index : std::exchange(ended, {})) {
      MILLRACE_CHECK_OK(take(index, texts[index]));
      ++taken;
    }
  }
  return Ok{};
}

Status check_room(const GenerationQuestion& question, std::int64_t longest) {
  const auto prompt = static_cast<std::int64_t>(question.prompt.size());
  if (question.max_new_tokens > longest - prompt) {
    return fail(
        "the prompt has {} tokens and the answer up to {} (\"max_tokens\"), but a sequence may have {} here (the "
        "model's "
        "context, --max-model-len or --kv-memory): ask for fewer or leave it out",
        prompt, question.max_new_tokens, longest);
  }
  return Ok{};
}

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\n\r\v\f";
  const std::size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) + 1 - first);
}

AnswerMatch match_answer(std::string_view text, std::span<const std::string> answers) {
  AnswerMatch match;
  for (const std::string& answer : answers) {
    match.exact = match.exact || trimmed(text) == trimmed(answer);
    match.contained = match.contained || text.find(trimmed(answer)) != std::string_view::npos;
  }
  return match;
}

}  // namespace millrace
