#include "server/api_answer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <iterator>
#include <utility>

#include "server/api_choice.h"
#include "server/api_embedding.h"
#include "server/api_id.h"
#include "server/api_json.h"
#include "server/api_token_text.h"

namespace millrace {

namespace {

std::string usage_json(const Usage& usage) {
  std::string json = fmt::format(
      R"({{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{},"prompt_tokens_details":{{"cached_tokens":{}}})",
      usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens + usage.completion_tokens, usage.cached_tokens);
  if (usage.service) {
    const ServiceReport& service = *usage.service;
    fmt::format_to(
        std::back_inserter(json),
        R"(,"millrace":{{"cost_usd":{:.9g},"energy_j":{:.6g},"energy_is":"modelled","node":{},"recipe":{},"migrations":{},"continuation":"{}"}})",
        service.usd, service.joules, json_string(service.node), json_string(service.recipe), service.migrations,
        service.identical ? "identical" : "valid");
  }
  return json + '}';
}

void add(std::optional<ServiceReport>& sum, const ServiceReport& more) {
  if (!sum) sum = ServiceReport();
  sum->usd += more.usd;
  sum->joules += more.joules;
  sum->node = more.node;
  sum->recipe = more.recipe;
  sum->migrations += more.migrations;
  sum->identical = sum->identical && more.identical;
}

std::string answer_id(Endpoint endpoint) {
  constexpr std::size_t kLetters = 29;
  return (endpoint == Endpoint::chat ? "chatcmpl-" : "cmpl-") + random_letters(kLetters);
}

ApiError failure(const TokenEvent& event) {
  if (event.finish == FinishReason::error) {
    if (event.error_kind) return ApiError::from({event.error, *event.error_kind});
    return ApiError::internal(event.error);
  }
  return ApiError::from({.message = "The request was cancelled before its end.", .kind = ErrorKind::unavailable});
}

/// Members of a chat's delta: reasoning and content, tool calls, whatever there is.
void append_delta(std::string& out, const AnswerDelta& delta, const std::vector<Choice::ToolCall>& calls) {
  const char* comma = "";
  if (!delta.reasoning.empty()) {
    out += R"("reasoning_content":)";
    append_json_string(out, delta.reasoning);
    comma = ",";
  }
  if (!delta.content.empty()) {
    out += comma;
    out += R"("content":)";
    append_json_string(out, delta.content);
    comma = ",";
  }
  if (delta.tool_calls.empty()) return;
  out += comma;
  out += R"("tool_calls":[)";
  for (const ToolCallDelta& call : delta.tool_calls) {
    fmt::format_to(std::back_inserter(out), R"({}{{"index":{},)", out.back() == '[' ? "" : ",", call.index);
    if (!call.name.empty()) {  // the first of its call
      const std::string& id = calls[static_cast<std::size_t>(call.index)].id;
      fmt::format_to(std::back_inserter(out), R"("id":{},"type":"function",)", json_string(id));
    }
    out += R"("function":{)";
    if (!call.name.empty()) {
      out += R"("name":)";
      append_json_string(out, call.name);
      out += ',';
    }
    out += R"("arguments":)";
    append_json_string(out, call.arguments);
    out += "}}";
  }
  out += ']';
}

/// A chat's message in one piece. Content that is not there is null beside calls, else an empty string.
void append_message(std::string& out, const Choice& choice) {
  out += R"({"role":"assistant","content":)";
  if (choice.content().empty() && !choice.calls().empty()) {
    out += "null";
  } else {
    append_json_string(out, choice.content());
  }
  out += R"(,"refusal":null)";
  if (!choice.reasoning().empty()) {
    out += R"(,"reasoning_content":)";
    append_json_string(out, choice.reasoning());
  }
  if (!choice.calls().empty()) {
    out += R"(,"tool_calls":[)";
    for (const Choice::ToolCall& call : choice.calls()) {
      fmt::format_to(
          std::back_inserter(out), R"({}{{"id":{},"type":"function","function":{{"name":{},"arguments":{}}}}})",
          out.back() == '[' ? "" : ",", json_string(call.id), json_string(call.name), json_string(call.arguments));
    }
    out += ']';
  }
  out += '}';
}

}  // namespace

class AnswerBuilder::Impl {
 public:
  Impl(const ServedModel& model, AnswerSpec spec);

  void on(std::size_t request, const TokenEvent& event, std::string& out);
  [[nodiscard]] std::string response();
  [[nodiscard]] Usage usage() const;
  [[nodiscard]] bool done() const { return error.has_value() || open_ == 0; }

  std::string id;
  std::optional<ApiError> error;

 private:
  struct Answer {  // of one engine request
    std::vector<Choice> choices;
    std::vector<float> embedding;
    std::optional<RequestSummary> summary;
    // The engine reports a prompt's tokens once, with choice 0; what other choices say before that has to wait.
    std::int64_t prompt_left = 0;
    std::vector<TokenEvent> early;
  };

  void take_prompt(std::size_t request, const TokenEvent& event, std::string& out);
  void deliver(std::size_t request, const TokenEvent& event, std::string& out);

  void fail(const TokenEvent& event, std::string& out);
  void tell(std::size_t request, std::int32_t choice, const Choice::Step& step, std::string& out);
  void tell_end(std::string& out) const;
  void begin_chunk(std::string& out, std::size_t index) const;
  void end_chunk(std::string& out) const;
  void append_choice(std::string& out, Choice& choice, std::size_t request, std::size_t index) const;
  void append_choice_end(std::string& out, Choice& choice, std::string_view finish) const;
  [[nodiscard]] std::vector<Choice*> told_choices(Answer& answer) const;
  [[nodiscard]] std::string embeddings_response() const;
  [[nodiscard]] std::size_t index_of(std::size_t request, std::int32_t choice) const {
    return request * static_cast<std::size_t>(spec_.n) + static_cast<std::size_t>(choice);
  }
  [[nodiscard]] bool is_chat() const { return spec_.endpoint == Endpoint::chat; }

  AnswerSpec spec_;
  TokenText text_;
  std::string head_;  // {"id":...,"choices":[
  std::vector<Answer> answers_;
  std::size_t open_;  // engine requests that have not ended
};

AnswerBuilder::Impl::Impl(const ServedModel& model, AnswerSpec spec)
    : id(answer_id(spec.endpoint)),
      spec_(std::move(spec)),
      text_(model.tokenizer, model.grammar_vocabulary.get()),
      answers_(spec_.prompts.size()),
      open_(answers_.size()) {
  const char* object = !is_chat() ? "text_completion" : spec_.stream ? "chat.completion.chunk" : "chat.completion";
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  head_ = fmt::format(R"({{"id":"{}","object":"{}","created":{},"model":{},"system_fingerprint":{},"choices":[)", id,
                      object, std::chrono::duration_cast<std::chrono::seconds>(now).count(), json_string(spec_.model),
                      json_string(model.fingerprint));
  if (spec_.endpoint == Endpoint::embedding) return;
  for (std::size_t i = 0; i < answers_.size(); ++i) {
    if (spec_.echo && spec_.logprobs >= 0) answers_[i].prompt_left = spec_.prompts[i].tokens;
    answers_[i].choices.reserve(static_cast<std::size_t>(spec_.choices));
    for (std::int32_t choice = 0; choice < spec_.choices; ++choice) {
      answers_[i].choices.emplace_back(spec_, model, text_, spec_.prompts[i].text);
    }
  }
}

void AnswerBuilder::Impl::on(std::size_t request, const TokenEvent& event, std::string& out) {
  if (done()) return;  // what comes after a failure
  Answer& answer = answers_[request];
  if (event.finish == FinishReason::error || event.finish == FinishReason::cancelled) {
    fail(event, out);
    return;
  }
  if (event.of_prompt) {
    take_prompt(request, event, out);
  } else if (answer.prompt_left > 0 && event.choice != 0) {
    answer.early.push_back(event);
  } else {
    deliver(request, event, out);
  }
  if (event.summary == nullptr) return;
  answer.summary = *event.summary;
  if (--open_ == 0 && spec_.stream) tell_end(out);
}

void AnswerBuilder::Impl::take_prompt(std::size_t request, const TokenEvent& event, std::string& out) {
  Answer& answer = answers_[request];
  if (event.choice != 0 || answer.prompt_left == 0) return;
  for (Choice& choice : answer.choices) choice.add_prompt_token(event);
  if (--answer.prompt_left > 0) return;
  for (const TokenEvent& early : std::exchange(answer.early, {})) deliver(request, early, out);
}

void AnswerBuilder::Impl::deliver(std::size_t request, const TokenEvent& event, std::string& out) {
  Answer& answer = answers_[request];
  if (spec_.endpoint == Endpoint::embedding) {
    if (!event.embedding.empty()) answer.embedding = event.embedding;
    return;
  }
  Choice& choice = answer.choices[static_cast<std::size_t>(event.choice)];
  Choice::Step step = choice.take(event);
  if (spec_.stream) {
    tell(request, event.choice, step, out);
  } else {
    choice.keep(std::move(step.delta));
  }
}

void AnswerBuilder::Impl::fail(const TokenEvent& event, std::string& out) {
  error = failure(event);
  if (!spec_.stream) return;
  out += "data: ";
  out += error->json();
  out += "\n\ndata: [DONE]\n\n";
}

void AnswerBuilder::Impl::tell(std::size_t request, std::int32_t number, const Choice::Step& step, std::string& out) {
  Choice& choice = answers_[request].choices[static_cast<std::size_t>(number)];
  const std::size_t index = index_of(request, number);
  const bool first = !std::exchange(choice.opened, true);
  if (is_chat() && first) {
    begin_chunk(out, index);
    out += R"("delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}])";
    end_chunk(out);
  }
  const std::string_view repeated = first && spec_.echo ? std::string_view(spec_.prompts[request].text) : "";
  if (step.delta.empty() && repeated.empty() && step.finish.empty() && !choice.logprobs_due()) return;
  begin_chunk(out, index);
  if (is_chat()) {
    out += R"("delta":{)";
    append_delta(out, step.delta, choice.calls());
    out += '}';
  } else {
    out += R"("text":)";
    if (repeated.empty()) {
      append_json_string(out, step.delta.content);
    } else {
      append_json_string(out, std::string(repeated) + step.delta.content);
    }
  }
  append_choice_end(out, choice, step.finish);
  out += ']';
  end_chunk(out);
}

void AnswerBuilder::Impl::tell_end(std::string& out) const {
  if (spec_.include_usage) {
    out += "data: ";
    out += head_;
    out += R"(],"usage":)";
    out += usage_json(usage());
    out += "}\n\n";
  }
  out += "data: [DONE]\n\n";
}

void AnswerBuilder::Impl::begin_chunk(std::string& out, std::size_t index) const {
  out += "data: ";
  out += head_;
  fmt::format_to(std::back_inserter(out), R"({{"index":{},)", index);
}

void AnswerBuilder::Impl::end_chunk(std::string& out) const {
  if (spec_.continuous_usage) {
    out += R"(,"usage":)";
    out += usage_json(usage());
  } else if (spec_.include_usage) {
    out += R"(,"usage":null)";
  }
  out += "}\n\n";
}

std::string AnswerBuilder::Impl::response() {
  if (spec_.endpoint == Endpoint::embedding) return embeddings_response();
  std::string out = head_;
  for (std::size_t request = 0; request < answers_.size(); ++request) {
    std::int32_t number = 0;
    for (Choice* choice : told_choices(answers_[request])) {
      if (out.back() != '[') out += ',';
      append_choice(out, *choice, request, index_of(request, number++));
    }
  }
  out += R"(],"usage":)";
  out += usage_json(usage());
  out += '}';
  return out;
}

std::vector<Choice*> AnswerBuilder::Impl::told_choices(Answer& answer) const {
  std::vector<Choice*> told;
  for (Choice& choice : answer.choices) told.push_back(&choice);
  if (spec_.choices > spec_.n) {  // best_of
    std::stable_sort(told.begin(), told.end(),
                     [](const Choice* a, const Choice* b) { return a->mean_logprob() > b->mean_logprob(); });
    told.resize(static_cast<std::size_t>(spec_.n));
  }
  return told;
}

void AnswerBuilder::Impl::append_choice(std::string& out, Choice& choice, std::size_t request,
                                        std::size_t index) const {
  fmt::format_to(std::back_inserter(out), R"({{"index":{},)", index);
  if (is_chat()) {
    out += R"("message":)";
    append_message(out, choice);
  } else {
    out += R"("text":)";
    append_json_string(out, (spec_.echo ? spec_.prompts[request].text : std::string()) + choice.content());
  }
  append_choice_end(out, choice, choice.finish());
}

void AnswerBuilder::Impl::append_choice_end(std::string& out, Choice& choice, std::string_view finish) const {
  out += R"(,"logprobs":)";
  out += choice.take_logprobs();
  if (finish.empty()) {
    out += R"(,"finish_reason":null})";
  } else {
    fmt::format_to(std::back_inserter(out), R"(,"finish_reason":"{}"}})", finish);
  }
}

std::string AnswerBuilder::Impl::embeddings_response() const {
  std::string out = R"({"object":"list","data":[)";
  for (std::size_t i = 0; i < answers_.size(); ++i) {
    fmt::format_to(std::back_inserter(out), R"({}{{"object":"embedding","index":{},"embedding":)", i == 0 ? "" : ",",
                   i);
    append_embedding(out, answers_[i].embedding, spec_.normalize, spec_.base64);
    out += '}';
  }
  const std::int64_t tokens = usage().prompt_tokens;
  fmt::format_to(std::back_inserter(out), R"(],"model":{},"usage":{{"prompt_tokens":{},"total_tokens":{}}}}})",
                 json_string(spec_.model), tokens, tokens);
  return out;
}

Usage AnswerBuilder::Impl::usage() const {
  Usage usage;
  for (std::size_t i = 0; i < answers_.size(); ++i) {
    const Answer& answer = answers_[i];
    if (answer.summary) {
      usage.prompt_tokens += answer.summary->prompt_tokens;
      usage.cached_tokens += answer.summary->cached_tokens;
      usage.completion_tokens += answer.summary->generated_tokens;
      if (answer.summary->service) add(usage.service, *answer.summary->service);
    } else {
      usage.prompt_tokens += spec_.prompts[i].tokens;
      for (const Choice& choice : answer.choices) usage.completion_tokens += choice.tokens();
    }
  }
  return usage;
}

AnswerBuilder::AnswerBuilder(const ServedModel& model, AnswerSpec spec)
    : impl_(std::make_unique<Impl>(model, std::move(spec))) {}
AnswerBuilder::~AnswerBuilder() = default;
AnswerBuilder::AnswerBuilder(AnswerBuilder&&) noexcept = default;
AnswerBuilder& AnswerBuilder::operator=(AnswerBuilder&&) noexcept = default;

void AnswerBuilder::on(std::size_t request, const TokenEvent& event, std::string& out) {
  impl_->on(request, event, out);
}
bool AnswerBuilder::done() const {
  return impl_->done();
}
const std::optional<ApiError>& AnswerBuilder::error() const {
  return impl_->error;
}
std::string AnswerBuilder::response() {
  return impl_->response();
}
Usage AnswerBuilder::usage() const {
  return impl_->usage();
}
const std::string& AnswerBuilder::id() const {
  return impl_->id;
}

}  // namespace millrace
