#include "engine/request_state.h"

#include <algorithm>
#include <string>

namespace millrace {

Status check_begun(const Request& request, std::int64_t vocab, std::int64_t room) {
  if (request.begun.empty()) return Ok{};
  if (request.task != Task::generate) return fail("embeddings do not go on where others ended");
  if (request.begun.size() != static_cast<std::size_t>(request.choices)) {
    return fail("{} answers have begun, of {} choices", request.begun.size(), request.choices);
  }
  // Cut to what fits here, it would end sooner than where it began.
  if (request.max_new_tokens > room) {
    return fail("an answer that has begun may have {} tokens, and here is room for {}", request.max_new_tokens, room);
  }
  for (const BegunAnswer& begun : request.begun) {
    if (static_cast<std::int64_t>(begun.tokens.size()) > request.max_new_tokens) {
      return fail("an answer has {} tokens already, of {}", begun.tokens.size(), request.max_new_tokens);
    }
    if (begun.prompt_reported < 0 || begun.prompt_reported > static_cast<std::int64_t>(request.prompt.size())) {
      return fail("{} tokens of a prompt of {} were told", begun.prompt_reported, request.prompt.size());
    }
    for (const std::int32_t token : begun.tokens) {
      if (token < 0 || token >= vocab) {
        return fail("token id {} of an answer is outside the vocabulary of {} tokens", token, vocab);
      }
    }
  }
  if (std::ranges::all_of(request.begun, &BegunAnswer::ended)) return fail("all answers have ended already");
  return Ok{};
}

TakenToken take_token(ChoiceState& choice, std::int32_t token) {
  const Request& request = choice.request->request;
  TakenToken taken;
  if (needs_counts(choice.sampling)) choice.counts.add_generated(token);
  ++choice.generated;
  const bool ended = std::ranges::find(request.stop_ids, token) != request.stop_ids.end();
  if (choice.grammar && !ended) {
    if (const Status accepted = choice.grammar->accept(token); !accepted.ok()) {
      taken.error = accepted.error().message;
      return taken;
    }
  }
  if (!ended) taken.text = choice.text.push(token);
  if (ended || choice.text.stopped() || (choice.grammar && choice.grammar->finished())) {
    taken.finish = FinishReason::stop;
  } else if (choice.generated >= request.max_new_tokens) {
    taken.finish = FinishReason::length;
  }
  return taken;
}

}  // namespace millrace
