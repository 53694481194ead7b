// Readers of one tool call, or one list of calls, in each of the ways that models write them.
//
// A reader is fed the characters after the mark that opens the call. Until it is certain that they are a call it says
// nothing, and the text is kept in CallSink::pending, to become content should it turn out otherwise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>

#include "text/answer_delta.h"
#include "text/answer_format.h"
#include "text/answer_json.h"

namespace millrace {

/// What the readers tell. `out` is the delta of the current push.
struct CallSink {
  AnswerDelta* out = nullptr;
  std::string pending;     // text of which nothing has been told
  bool open = false;       // a call has begun and not ended
  std::int32_t calls = 0;  // begun so far

  void begin(const std::string& name);
  void arguments(std::string_view text);
  void end() { open = false; }
  void settle() { pending.clear(); }  // all of it is told
};

enum class CallStep : std::uint8_t {
  more,
  done,   // the character was the last one of the call or list
  failed  // the character does not belong there; a call that has begun stands as it is
};

/// `c` may stand in the name of a tool.
inline bool is_name_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
         c == '.' || c == ':' || c == '/';
}

inline constexpr std::size_t kMaxCallHeader = 512;  // bytes before the arguments; real ones are far below

/// One object with a name and arguments, or a list of them.
class JsonCallReader {
 public:
  /// `bare`: no mark said that this is a call, so it must be one object and have arguments that are an object.
  /// `list`: it must be a list.
  JsonCallReader(bool bare, bool list) : bare_(bare), need_list_(list) {}
  CallStep feed(char c, CallSink& sink);
  void finish(CallSink& sink);

 private:
  CallStep begin_value(char c, CallSink& sink);
  CallStep end_value(char c, JsonValue::Step step, CallSink& sink);
  CallStep end_object(CallSink& sink);
  void tell(CallSink& sink);

  enum class State : std::uint8_t {
    begin,
    key_or_end,
    in_key,
    colon,
    value,
    in_name,
    in_arguments,
    in_other,
    comma,
    between
  } state_ = State::begin;
  bool bare_, need_list_;
  bool in_list_ = false, after_comma_ = false;
  bool has_name_ = false, has_arguments_ = false;
  std::string key_, name_, arguments_;  // `arguments_` waits for the name
  JsonString string_;
  JsonValue value_;
};

/// A header that holds the name, then the arguments.
class NamedCallReader {
 public:
  explicit NamedCallReader(CallSyntax syntax) : syntax_(syntax) {}
  CallStep feed(char c, CallSink& sink);
  void finish(CallSink& sink);

 private:
  [[nodiscard]] std::string name() const;  // of the whole header; empty: it is none

  CallSyntax syntax_;
  bool in_header_ = true;
  std::string header_;
  std::variant<JsonValue, GemmaValue> value_;
};

/// Parameters in tags: Qwen3-Coder's and GLM-4.5's.
class TagCallReader {
 public:
  /// `named`: "<function=" has been read.
  TagCallReader(CallSyntax syntax, bool named, const ParameterTypes* types);
  CallStep feed(char c, CallSink& sink);
  void finish(CallSink& sink);

 private:
  struct Tags;
  enum class Found : std::uint8_t { more, none, first, second, third };

  Found tag(char c, std::string_view first, std::string_view second = {}, std::string_view third = {});
  CallStep fail(CallSink& sink);
  void begin(CallSink& sink);
  void begin_key(CallSink& sink);
  void begin_value();
  void value_text(std::string_view text, CallSink& sink);
  void end_value(CallSink& sink);

  enum class State : std::uint8_t { open, name, body, key, value_tag, value } state_;
  const Tags* tags_;
  const ParameterTypes* types_;
  std::string held_;  // the beginning of a tag
  std::string name_, key_;
  bool begun_ = false, first_ = true;
  // The value: told as it comes where it is a string for certain, else kept until its end.
  enum class Value : std::uint8_t { begin, string, undecided } value_ = Value::begin;
  ParameterTypes::Kind kind_ = ParameterTypes::Kind::unknown;
  std::string text_;
  bool newline_ = false;  // held back, for it may be the last one
};

/// Llama's built-in tools: name.call(key="value", ...).
class PythonCallReader {
 public:
  CallStep feed(char c, CallSink& sink);
  void finish(CallSink&) {}

 private:
  void tell(CallSink& sink) const;

  bool in_name_ = true;
  char quote_ = 0;
  bool escaped_ = false;
  std::string name_, arguments_;
};

using CallReader = std::variant<std::monostate, JsonCallReader, NamedCallReader, TagCallReader, PythonCallReader>;

}  // namespace millrace
