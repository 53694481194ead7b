#include "server/api_choice.h"

#include <algorithm>

#include "server/api_id.h"

namespace millrace {

namespace {

/// Mistral's templates refuse any other form of a call's id when the call comes back in a later prompt.
bool wants_short_ids(const ServedModel& model) {
  return model.template_source.find("length != 9") != std::string::npos;
}

}  // namespace

Choice::Choice(const AnswerSpec& spec, const ServedModel& model, const TokenText& text,
               std::string_view rendered_prompt)
    : spec_(&spec), short_ids_(spec.tools != ToolMode::none && wants_short_ids(model)) {
  if (spec.parse) parser_.emplace(model.format, spec.tools == ToolMode::parse, rendered_prompt, spec.tools_json);
  if (spec.tools == ToolMode::required) forced_.emplace();
  if (spec.logprobs >= 0) {
    const auto shape = spec.endpoint == Endpoint::chat ? ChoiceLogprobs::Shape::chat : ChoiceLogprobs::Shape::legacy;
    logprobs_.emplace(text, shape, spec.logprobs, spec.special_text);
  }
}

void Choice::add_prompt_token(const TokenEvent& event) {
  if (logprobs_) logprobs_->add(event.token, event.logprobs ? &*event.logprobs : nullptr, false);
}

Choice::Step Choice::take(const TokenEvent& event) {
  if (in_prompt_ && logprobs_) logprobs_->end_prompt();
  in_prompt_ = false;
  const bool last = event.finish != FinishReason::none;
  if (event.token >= 0) {
    ++tokens_;
    if (event.logprobs) sum_logprob_ += static_cast<double>(event.logprobs->logprob);
    const bool silent = last && event.finish == FinishReason::stop && event.stop_string.empty() &&
                        std::find(spec_->stop_ids.begin(), spec_->stop_ids.end(), event.token) != spec_->stop_ids.end();
    // In a chat the tokens' texts make up the content, so the one that ends the answer is left out.
    if (logprobs_ && !(silent && spec_->endpoint == Endpoint::chat)) {
      logprobs_->add(event.token, event.logprobs ? &*event.logprobs : nullptr, silent);
    }
  }
  text_bytes_ += event.text.size();
  if (logprobs_) {
    logprobs_->told(text_bytes_);
    if (last) logprobs_->finish(event.stop_string.empty());
  }
  Step step{.delta = read(event.text, last), .finish = {}};
  begin_calls(step.delta);
  if (last) step.finish = finish_ = finish_name(event);
  return step;
}

AnswerDelta Choice::read(std::string_view text, bool last) {
  if (parser_) {
    AnswerDelta delta = parser_->push(text);
    if (!last) return delta;
    AnswerDelta rest = parser_->finish();
    delta.content += rest.content;
    delta.reasoning += rest.reasoning;
    for (ToolCallDelta& call : rest.tool_calls) delta.tool_calls.push_back(std::move(call));
    return delta;
  }
  if (forced_) return forced_->push(text);
  AnswerDelta delta;
  if (spec_->tools != ToolMode::named) {
    delta.content = text;
  } else if (!text.empty() || calls_.empty()) {
    const std::string name = calls_.empty() ? spec_->forced_tool : std::string();
    delta.tool_calls.push_back({.index = 0, .name = name, .arguments = std::string(text)});
  }
  return delta;
}

void Choice::begin_calls(AnswerDelta& delta) {
  if (!spec_->parallel_tool_calls) {
    std::erase_if(delta.tool_calls, [](const ToolCallDelta& call) { return call.index > 0; });
  }
  for (const ToolCallDelta& call : delta.tool_calls) {
    if (static_cast<std::size_t>(call.index) < calls_.size()) continue;
    std::string id = short_ids_ ? random_letters(9) : "call_" + random_letters(24);
    calls_.push_back({.id = std::move(id), .name = call.name, .arguments = {}});
  }
}

void Choice::keep(AnswerDelta delta) {
  content_ += delta.content;
  reasoning_ += delta.reasoning;
  for (const ToolCallDelta& call : delta.tool_calls) {
    calls_[static_cast<std::size_t>(call.index)].arguments += call.arguments;
  }
}

std::string_view Choice::finish_name(const TokenEvent& event) const {
  if (event.finish == FinishReason::length) return "length";
  const bool chose_tools = spec_->tools == ToolMode::parse || spec_->tools == ToolMode::required;
  return chose_tools && !calls_.empty() ? "tool_calls" : "stop";
}

double Choice::mean_logprob() const {
  return tokens_ == 0 ? 0.0 : sum_logprob_ / static_cast<double>(tokens_);
}

std::string Choice::take_logprobs() {
  return logprobs_due() ? logprobs_->take() : "null";
}

}  // namespace millrace
