#include "text/answer_calls.h"

#include <algorithm>
#include <utility>

namespace millrace {

namespace {

bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= kMaxCallHeader && std::all_of(text.begin(), text.end(), is_name_character);
}

bool is_one_of(std::string_view text, std::initializer_list<std::string_view> list) {
  return std::find(list.begin(), list.end(), text) != list.end();
}

/// `text` up to `mark`, or all of it.
std::string_view before(std::string_view text, std::string_view mark) {
  return text.substr(0, text.find(mark));
}

/// `text` after `mark`; empty without one.
std::string_view after(std::string_view text, std::string_view mark) {
  const std::size_t at = text.find(mark);
  return at == std::string_view::npos ? std::string_view() : text.substr(at + mark.size());
}

}  // namespace

// ---- CallSink -------------------------------------------------------------------------------------------------------

void CallSink::begin(const std::string& name) {
  out->tool_calls.push_back({calls, name, {}});
  ++calls;
  open = true;
}

void CallSink::arguments(std::string_view text) {
  if (text.empty()) return;
  auto& deltas = out->tool_calls;
  if (deltas.empty() || deltas.back().index != calls - 1) deltas.push_back({calls - 1, {}, {}});
  deltas.back().arguments += text;
}

// ---- JsonCallReader -------------------------------------------------------------------------------------------------

CallStep JsonCallReader::feed(char c, CallSink& sink) {
  switch (state_) {
    case State::in_key:
      if (string_.feed(c, key_)) state_ = State::colon;
      return CallStep::more;
    case State::in_name:
      if (string_.feed(c, name_)) {
        has_name_ = true;
        state_ = State::comma;
        tell(sink);
      }
      return CallStep::more;
    case State::in_arguments:
    case State::in_other: {
      std::string text;
      const JsonValue::Step step = value_.feed(c, text);
      if (state_ == State::in_arguments) arguments_ += text;
      return end_value(c, step, sink);
    }
    default:
      break;
  }
  if (is_blank(c)) {
    if (sink.open || state_ == State::between) sink.settle();
    return CallStep::more;
  }
  switch (state_) {
    case State::begin:
      if (c == '[' && !bare_ && !in_list_) {
        in_list_ = true;
        return CallStep::more;
      }
      if (c != '{' || (need_list_ && !in_list_)) return CallStep::failed;
      state_ = State::key_or_end;
      after_comma_ = false;
      return CallStep::more;
    case State::key_or_end:
      if (c == '}' && !after_comma_) return end_object(sink);
      if (c != '"') return CallStep::failed;
      key_.clear();
      string_ = {};
      state_ = State::in_key;
      return CallStep::more;
    case State::colon:
      if (c != ':') return CallStep::failed;
      state_ = State::value;
      return CallStep::more;
    case State::value:
      return begin_value(c, sink);
    case State::comma:
      if (c == '}') return end_object(sink);
      if (c != ',') return CallStep::failed;
      after_comma_ = true;
      state_ = State::key_or_end;
      if (sink.open) sink.settle();
      return CallStep::more;
    default:  // between the calls of a list
      if (c == ']') {
        sink.settle();
        return CallStep::done;
      }
      if (c == '{') {
        state_ = State::key_or_end;
        after_comma_ = false;
        return CallStep::more;
      }
      if (c != ',') return CallStep::failed;
      sink.settle();
      return CallStep::more;
  }
}

CallStep JsonCallReader::begin_value(char c, CallSink& sink) {
  if (is_one_of(key_, {"name", "tool_name", "function"}) && c == '"' && !has_name_) {
    string_ = {};
    name_.clear();
    state_ = State::in_name;
    return CallStep::more;
  }
  const bool arguments = is_one_of(key_, {"arguments", "parameters"}) && !has_arguments_;
  if (arguments && bare_ && c != '{') return CallStep::failed;
  has_arguments_ = has_arguments_ || arguments;
  value_ = {};
  state_ = arguments ? State::in_arguments : State::in_other;
  std::string text;
  const JsonValue::Step step = value_.feed(c, text);
  if (arguments) arguments_ += text;
  return end_value(c, step, sink);
}

CallStep JsonCallReader::end_value(char c, JsonValue::Step step, CallSink& sink) {
  if (step != JsonValue::Step::more) state_ = State::comma;
  tell(sink);
  return step == JsonValue::Step::done_before ? feed(c, sink) : CallStep::more;
}

/// Begins the call once it is certain, and passes on the arguments that have come.
void JsonCallReader::tell(CallSink& sink) {
  if (!sink.open) {
    if (!has_name_ || name_.empty() || !has_arguments_) return;
    sink.begin(name_);
  }
  sink.arguments(std::exchange(arguments_, {}));
  sink.settle();
}

CallStep JsonCallReader::end_object(CallSink& sink) {
  if (!sink.open) {
    if (!has_name_ || name_.empty() || bare_) return CallStep::failed;
    has_arguments_ = true;
    arguments_ = "{}";
    tell(sink);
  }
  sink.end();
  sink.settle();
  has_name_ = has_arguments_ = false;
  state_ = State::between;
  return in_list_ ? CallStep::more : CallStep::done;
}

void JsonCallReader::finish(CallSink& sink) {
  if (!sink.open) return;
  if (state_ == State::in_arguments) {
    std::string text;
    value_.finish(text);
    sink.arguments(text);
  }
}

// ---- NamedCallReader ------------------------------------------------------------------------------------------------

CallStep NamedCallReader::feed(char c, CallSink& sink) {
  if (!in_header_) {
    std::string text;
    const JsonValue::Step step = std::visit([&](auto& value) { return value.feed(c, text); }, value_);
    sink.arguments(text);
    sink.settle();
    return step == JsonValue::Step::more ? CallStep::more : CallStep::done;
  }
  if (c != '{' && !(c == '"' && syntax_ == CallSyntax::deepseek)) {
    if (header_.size() == kMaxCallHeader) return CallStep::failed;
    if (syntax_ == CallSyntax::bare_named) {  // nothing but the text itself says that it is a call
      const bool named = header_.find('\n') != std::string::npos;
      if (c == '\n' ? header_.empty() || named : named || !is_name_character(c)) return CallStep::failed;
    }
    header_ += c;
    return CallStep::more;
  }
  const std::string called = name();
  if (called.empty()) return CallStep::failed;
  sink.begin(called);
  in_header_ = false;
  if (syntax_ == CallSyntax::gemma) value_ = GemmaValue();
  return feed(c, sink);
}

std::string NamedCallReader::name() const {
  std::string_view text = header_;
  if (syntax_ == CallSyntax::mistral) {
    constexpr std::string_view kId = "[CALL_ID]", kArguments = "[ARGS]";
    const std::string_view head = before(text, kArguments);
    if (!trim_blanks(after(text, kArguments)).empty()) return {};
    const std::string_view id = trim_blanks(after(head, kId));
    if (!id.empty() && !is_name(id)) return {};
    text = before(head, kId);
  } else if (syntax_ == CallSyntax::gemma) {
    text = trim_blanks(text);
    if (!text.starts_with("call:")) return {};
    text.remove_prefix(5);
  } else if (syntax_ == CallSyntax::deepseek) {
    constexpr std::string_view kSeparator = "<｜tool▁sep｜>";
    if (text.find(kSeparator) == std::string_view::npos) return {};
    const std::string_view type = trim_blanks(before(text, kSeparator));
    const std::string_view rest = trim_blanks(after(text, kSeparator));
    if (!rest.empty()) {  // the older form: what stands first is the type of the tool
      const std::string_view fence = trim_blanks(rest.substr(before(rest, "\n").size()));
      if (!is_name(type) || !is_one_of(fence, {"", "```", "```json"})) return {};
    }
    text = rest.empty() ? type : before(rest, "\n");
  } else if (!text.ends_with('\n')) {
    return {};
  }
  text = trim_blanks(text);
  return is_name(text) ? std::string(text) : std::string();
}

void NamedCallReader::finish(CallSink& sink) {
  if (in_header_) return;
  std::string text;
  std::visit([&](auto& value) { value.finish(text); }, value_);
  sink.arguments(text);
  sink.settle();
}

// ---- PythonCallReader -----------------------------------------------------------------------------------------------

CallStep PythonCallReader::feed(char c, CallSink& sink) {
  if (in_name_) {
    if (is_name_character(c) && name_.size() < kMaxCallHeader) {
      name_ += c;
      return CallStep::more;
    }
    constexpr std::string_view kSuffix = ".call";
    if (c != '(' || !name_.ends_with(kSuffix) || name_.size() == kSuffix.size()) return CallStep::failed;
    name_.resize(name_.size() - kSuffix.size());
    in_name_ = false;
    return CallStep::more;
  }
  if (quote_ == 0 && c == ')') {
    tell(sink);
    sink.settle();
    return CallStep::done;
  }
  if (quote_ == 0) {
    if (c == '"' || c == '\'') quote_ = c;
  } else if (!escaped_ && c == quote_) {
    quote_ = 0;
  }
  escaped_ = quote_ != 0 && !escaped_ && c == '\\';
  arguments_ += c;
  return CallStep::more;
}

void PythonCallReader::tell(CallSink& sink) const {
  std::string json = "{";
  std::string_view rest = trim_blanks(arguments_);
  while (!rest.empty()) {
    const std::size_t equals = rest.find('=');
    const std::string_view key = trim_blanks(rest.substr(0, equals));
    rest = equals == std::string_view::npos ? std::string_view() : trim_blanks(rest.substr(equals + 1));
    if (json.size() > 1) json += ", ";
    json += '"';
    append_json_escaped(json, key);
    json += "\": ";
    if (!rest.empty() && (rest[0] == '"' || rest[0] == '\'')) {
      std::size_t end = 1;
      while (end < rest.size() && rest[end] != rest[0]) end += rest[end] == '\\' ? 2 : 1;
      end = std::min(end, rest.size());
      std::string text;
      JsonString string;
      for (const char c : rest.substr(1, end - 1)) {
        if (string.feed(c, text)) text += c;  // a double quote within single ones
      }
      json += '"';
      append_json_escaped(json, text);
      json += '"';
      rest.remove_prefix(std::min(end + 1, rest.size()));
    } else {
      const std::string_view value = trim_blanks(before(rest, ","));
      if (is_json(value)) {
        json += value;
      } else {
        json += '"';
        append_json_escaped(json, value);
        json += '"';
      }
      rest.remove_prefix(std::min(rest.find(','), rest.size()));
    }
    rest = trim_blanks(rest);
    if (rest.starts_with(',')) rest = trim_blanks(rest.substr(1));
  }
  sink.begin(name_);
  sink.arguments(json + "}");
}

}  // namespace millrace
