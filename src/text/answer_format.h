// AnswerFormat: which marks a model puts around reasoning and tool calls, read from its chat template.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/special_filter.h"
#include "text/tokenizer.h"

namespace millrace {

/// How a tool call is written down.
enum class CallSyntax : std::uint8_t {
  none,
  json,        // after a mark: {"name": ..., "arguments": {...}}, or a list of such objects
  bare_json,   // Llama 3: the object is the answer; or it follows <|python_tag|>, as name.call(key="value") may
  xml,         // Qwen3-Coder: <function=name><parameter=key>value</parameter></function>
  pairs,       // GLM-4.5: name, then <arg_key>key</arg_key><arg_value>value</arg_value>
  mistral,     // a JSON list, or name[CALL_ID]id[ARGS]{...}
  deepseek,    // name<sep>{...}, or type<sep>name and the object in a code block
  gemma,       // Gemma 4: call:name{key:<|"|>value<|"|>}
  bare_named,  // GLM-4: the answer is a line with the name, then {...}
  harmony,     // gpt-oss: messages, each with a channel and perhaps a recipient
};

/// The marks themselves. Those of harmony are fixed and only listed here.
struct AnswerMarks {
  CallSyntax syntax = CallSyntax::none;
  std::vector<std::string> call_open, call_close;
  std::vector<std::string> call_group;  // stands before the first call_open, says nothing
  std::vector<std::string> inside;      // occur within a call
  std::string reasoning_open, reasoning_close;
  bool reasoning_anywhere = false;    // a token of its own, so also after content; else only as the answer's beginning
  std::vector<std::string> wrappers;  // stand around the content and say nothing
  bool wrappers_need_reasoning = false;  // are text unless reasoning came before

  [[nodiscard]] std::vector<std::string> all() const;
};

/// A value; cheap to copy, may be used by several threads at once.
class AnswerFormat {
 public:
  /// `chat_template_source`: Jinja text; where a model has a template for tools, that one. `tokenizer`: tells which
  /// marks are special tokens; without one, none is. A template that marks nothing gives answers that are all content.
  static AnswerFormat detect(std::string_view chat_template_source, const Tokenizer* tokenizer);

  /// Some marks are special tokens: the parser must be given their text (Detokenizer's skip_special_tokens = false). It
  /// removes the text of all other special tokens.
  [[nodiscard]] bool special_text() const { return special_text_; }
  [[nodiscard]] bool has_reasoning() const { return !marks_->reasoning_close.empty() || harmony(); }
  [[nodiscard]] bool has_tools() const { return marks_->syntax != CallSyntax::none; }

  [[nodiscard]] bool harmony() const { return marks_->syntax == CallSyntax::harmony; }
  [[nodiscard]] const AnswerMarks& marks() const { return *marks_; }
  [[nodiscard]] const std::shared_ptr<const SpecialTexts>& special_texts() const { return special_; }

 private:
  std::shared_ptr<const AnswerMarks> marks_ = std::make_shared<const AnswerMarks>();
  std::shared_ptr<const SpecialTexts> special_;  // of all special tokens
  bool special_text_ = false;
};

}  // namespace millrace
