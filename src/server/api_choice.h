// Choice: one of the answers to a prompt, as far as it has come.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/request.h"
#include "server/api_answer.h"
#include "server/api_forced_calls.h"
#include "server/api_logprobs.h"
#include "text/answer_parser.h"

namespace millrace {

class Choice {
 public:
  struct ToolCall {
    std::string id, name, arguments;
  };

  /// What an event added.
  struct Step {
    AnswerDelta delta;
    std::string_view finish;  // "stop", "length" or "tool_calls"; empty: it goes on
  };

  /// `spec`, `model` and `text` must outlive it.
  Choice(const AnswerSpec& spec, const ServedModel& model, const TokenText& text, std::string_view rendered_prompt);

  /// Prompt tokens come before generated ones.
  void add_prompt_token(const TokenEvent& event);
  /// A token of the answer, or its end.
  Step take(const TokenEvent& event);

  /// Keeps what a step brought, for those who tell it in one piece.
  void keep(AnswerDelta delta);

  /// The calls that have begun; ids and names only, unless they were kept. By index.
  [[nodiscard]] const std::vector<ToolCall>& calls() const { return calls_; }
  [[nodiscard]] const std::string& content() const { return content_; }
  [[nodiscard]] const std::string& reasoning() const { return reasoning_; }
  [[nodiscard]] std::string_view finish() const { return finish_; }
  [[nodiscard]] std::int64_t tokens() const { return tokens_; }
  /// Mean logprob of a token, by which best_of chooses.
  [[nodiscard]] double mean_logprob() const;
  /// "null" where none are told.
  std::string take_logprobs();
  [[nodiscard]] bool logprobs_due() const { return logprobs_ && logprobs_->due(); }

  bool opened = false;  // its first chunk has been told

 private:
  AnswerDelta read(std::string_view text, bool last);
  void begin_calls(AnswerDelta& delta);
  [[nodiscard]] std::string_view finish_name(const TokenEvent& event) const;

  const AnswerSpec* spec_;
  bool short_ids_;
  std::optional<AnswerParser> parser_;
  std::optional<ForcedCalls> forced_;
  std::optional<ChoiceLogprobs> logprobs_;
  bool in_prompt_ = true;
  std::size_t text_bytes_ = 0;
  std::int64_t tokens_ = 0;
  double sum_logprob_ = 0.0;
  std::string content_, reasoning_;
  std::vector<ToolCall> calls_;
  std::string_view finish_;
};

}  // namespace millrace
