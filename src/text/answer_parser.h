// AnswerParser: the text of an answer, split into content, reasoning and tool calls as it streams.
#pragma once

#include <memory>
#include <string_view>

#include "text/answer_delta.h"
#include "text/answer_format.h"

namespace millrace {

/// However an answer is cut into pieces, what the deltas add up to is the same; pieces of whole characters give deltas
/// of whole characters. Each character of the answer ends up in one of the parts, but for marks and the white space
/// next to them. Arguments are told as they come, from where it is certain that there is a call. A call that is
/// malformed before that is content; one that is malformed or cut off later has the arguments that the model wrote,
/// JSON or not. Time is linear in the text; what is held back is a mark's beginning, white space before a mark, or a
/// call's beginning up to its arguments (where these come before its name, all of it). One thread at a time; movable.
class AnswerParser {
 public:
  /// `tools`: the request has tools that may be called; if not, the markup of calls is content. `rendered_prompt`: its
  /// end may have opened the reasoning already. `tools_json`: the request's "tools", for call syntaxes that do not tell
  /// 1 from "1"; without it, a value that looks like JSON is taken for JSON.
  AnswerParser(const AnswerFormat& format, bool tools, std::string_view rendered_prompt,
               std::string_view tools_json = {});
  AnswerParser(AnswerParser&&) noexcept;
  AnswerParser& operator=(AnswerParser&&) noexcept;
  ~AnswerParser();

  AnswerDelta push(std::string_view text);
  AnswerDelta finish();  // what was held back; nothing may be pushed after it

  [[nodiscard]] bool called_tools() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace millrace
