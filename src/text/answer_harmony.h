// Answers of gpt-oss, in OpenAI's harmony format (https://cookbook.openai.com/articles/openai-harmony).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "text/answer_calls.h"
#include "text/answer_marks.h"

namespace millrace {

/// An answer is a row of messages. A message is a header, which names a channel and perhaps a recipient, the mark
/// <|message|>, a body, and an end. The analysis channel is reasoning, a recipient makes a tool call of the body, and
/// everything else is content.
class HarmonyAnswer {
 public:
  /// `prompt`: what follows its last "<|start|>assistant" begins the answer.
  HarmonyAnswer(bool tools, std::string_view prompt);

  void feed(char c, CallSink& sink);
  void finish(CallSink& sink);

 private:
  void feed_header(char c, CallSink& sink);
  void begin_body(CallSink& sink);
  void body_text(char c, CallSink& sink);
  void end_body(std::string_view mark, CallSink& sink);

  enum class State : std::uint8_t { header, body } state_ = State::header;
  enum class Body : std::uint8_t { reasoning, content, markup, call } body_ = Body::content;
  bool tools_;
  MarkSet ends_;
  std::string header_;
  std::string held_;  // the beginning of a mark
  JsonValue arguments_;
  bool fresh_ = true;   // nothing of the call's body has come
  bool json_ = false;   // it is JSON, of which not all has come
  std::string blanks_;  // of a call's body, before something else than an end
};

}  // namespace millrace
