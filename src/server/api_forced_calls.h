// ForcedCalls: tool calls out of an answer whose grammar makes it a list of them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "text/answer_delta.h"

namespace millrace {

/// Reads [{"name": "...", "arguments": {...}}, ...] piece by piece. A name is told whole, arguments as they come, as
/// the text that stands there. The grammar has made sure of the form; an answer that was cut off just ends.
class ForcedCalls {
 public:
  AnswerDelta push(std::string_view text);

 private:
  enum class At : std::uint8_t { list, member, key, colon, value, string, nested, scalar };

  void take(char c, AnswerDelta& delta);
  void take_value(char c, AnswerDelta& delta);
  void tell_argument(char c, AnswerDelta& delta) const;
  [[nodiscard]] bool in_arguments() const { return key_ == "arguments"; }
  void end_string(AnswerDelta& delta);

  At at_ = At::list;
  std::int32_t call_ = -1;
  std::string key_;
  std::string string_;    // a key, or a value that is a string: as written, without its quotes
  int depth_ = 0;         // of a nested value
  bool quoted_ = false;   // in a string within a nested value
  bool escaped_ = false;  // the last character was a backslash
};

}  // namespace millrace
