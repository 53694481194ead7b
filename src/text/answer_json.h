// JSON as it streams by: values of a tool call, a character at a time.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace millrace {

/// Appends `text` as it stands between the quotes of a JSON string.
void append_json_escaped(std::string& out, std::string_view text);

/// White space of JSON; also what stands between marks and text.
inline bool is_blank(char c) {
  return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}
std::string_view trim_blanks(std::string_view text);

/// `text` is one JSON value.
bool is_json(std::string_view text);

/// The text of a JSON string, after its opening quote.
class JsonString {
 public:
  /// Appends what `c` says. True: it was the closing quote.
  bool feed(char c, std::string& out);

 private:
  void code_unit(std::string& out);

  enum class State : std::uint8_t { text, escape, unicode } state_ = State::text;
  int digits_ = 0;
  std::uint32_t unit_ = 0;
  std::uint32_t high_ = 0;  // first half of a surrogate pair, or 0
};

/// A whole JSON value, passed on as it was written, but for three things: control characters in strings become escapes
/// (models write newlines there), a string stands for the JSON text in it, and null and "" stand for {}. Brackets are
/// counted; whether the text between them is JSON is not checked.
class JsonValue {
 public:
  enum class Step : std::uint8_t { more, done, done_before };  // done_before: `c` no longer belongs to the value
  Step feed(char c, std::string& out);
  void finish(std::string& out);  // the answer ends within the value

 private:
  enum class State : std::uint8_t { begin, nested, quoted, scalar } state_ = State::begin;
  int depth_ = 0;
  bool in_string_ = false, escaped_ = false, empty_ = true;
  JsonString string_;
  std::string scalar_;
};

/// Gemma's writing of a JSON object, turned into JSON: keys stand bare, strings between <|"|> without escapes.
class GemmaValue {
 public:
  using Step = JsonValue::Step;
  Step feed(char c, std::string& out);
  void finish(std::string& out);

 private:
  Step plain(char c, std::string& out);
  void flush_word(std::string& out);

  std::string stack_;  // open brackets
  std::string word_;   // a key, or a value without quotes
  std::string held_;   // the beginning of a <|"|>
  bool in_string_ = false, in_json_string_ = false, escaped_ = false;
  bool key_ = false;         // a key comes next
  bool quoted_key_ = false;  // and has been said, with quotes
};

/// Which parameters of which tools are strings, for call syntaxes that do not say it.
class ParameterTypes {
 public:
  enum class Kind : std::uint8_t { unknown, string, other };

  ParameterTypes() = default;
  /// `tools_json`: the "tools" of a request; whatever does not look like them is passed over.
  explicit ParameterTypes(std::string_view tools_json);

  [[nodiscard]] Kind kind(const std::string& tool, const std::string& parameter) const;

 private:
  std::map<std::string, std::map<std::string, Kind>> kinds_;
};

}  // namespace millrace
