#include <array>
#include <utility>

#include "text/answer_calls.h"

namespace millrace {

struct TagCallReader::Tags {
  std::string_view key, key_end, value, value_end, end, other_end;
  bool newlines;  // around values
};

TagCallReader::TagCallReader(CallSyntax syntax, bool named, const ParameterTypes* types)
    : state_(syntax == CallSyntax::pairs || named ? State::name : State::open), types_(types) {
  static constexpr Tags kXml = {"<parameter=", ">", "", "</parameter>", "</function>", "</tool_call>", true};
  static constexpr Tags kPairs = {"<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "</tool_call>", "", false};
  tags_ = syntax == CallSyntax::pairs ? &kPairs : &kXml;
}

/// Adds `c` to what is held and says which tag that is, or that it cannot become one.
TagCallReader::Found TagCallReader::tag(char c, std::string_view first, std::string_view second,
                                        std::string_view third) {
  held_ += c;
  const std::array<std::pair<std::string_view, Found>, 3> tags = {
      {{first, Found::first}, {second, Found::second}, {third, Found::third}}};
  for (const auto& [text, found] : tags) {
    if (!text.starts_with(held_)) continue;
    if (text.size() > held_.size()) return Found::more;
    held_.clear();
    return found;
  }
  return Found::none;
}

CallStep TagCallReader::feed(char c, CallSink& sink) {
  switch (state_) {
    case State::open: {
      if (held_.empty() && is_blank(c)) return CallStep::more;
      const Found found = tag(c, "<function=");
      if (found == Found::first) state_ = State::name;
      return found == Found::none ? CallStep::failed : CallStep::more;
    }
    case State::name:
      if (name_.empty() && is_blank(c)) return CallStep::more;
      if (is_name_character(c) && name_.size() < kMaxCallHeader) {
        name_ += c;
        return CallStep::more;
      }
      if (name_.empty()) return CallStep::failed;
      state_ = State::body;
      if (tags_->newlines) return c == '>' ? CallStep::more : CallStep::failed;
      return feed(c, sink);
    case State::body: {
      if (held_.empty() && is_blank(c)) return CallStep::more;
      const Found found = tag(c, tags_->key, tags_->end, tags_->other_end);
      if (found == Found::none) return fail(sink);
      if (found == Found::more) return CallStep::more;
      begin(sink);
      if (found == Found::first) {
        begin_key(sink);
        return CallStep::more;
      }
      sink.arguments(first_ ? "{}" : "}");
      return CallStep::done;
    }
    case State::key: {
      const Found found = tag(c, tags_->key_end);
      if (found == Found::none) {
        key_ += std::exchange(held_, {});
        if (key_.size() > kMaxCallHeader) return fail(sink);
      }
      if (found != Found::first) return CallStep::more;
      state_ = State::value_tag;
      if (tags_->value.empty()) begin_value();
      return CallStep::more;
    }
    case State::value_tag: {
      if (held_.empty() && is_blank(c)) return CallStep::more;
      const Found found = tag(c, tags_->value);
      if (found == Found::none) return fail(sink);
      if (found == Found::first) begin_value();
      return CallStep::more;
    }
    case State::value:
      break;
  }
  held_ += c;
  while (!held_.empty() && !tags_->value_end.starts_with(held_)) {
    value_text({held_.data(), 1}, sink);
    held_.erase(0, 1);
  }
  if (held_ == tags_->value_end) {
    held_.clear();
    end_value(sink);
  }
  return CallStep::more;
}

CallStep TagCallReader::fail(CallSink& sink) {
  if (begun_) sink.arguments(first_ ? "{}" : "}");
  return CallStep::failed;
}

void TagCallReader::begin(CallSink& sink) {
  if (!std::exchange(begun_, true)) sink.begin(name_);
  sink.settle();
}

void TagCallReader::begin_key(CallSink& sink) {
  key_.clear();
  state_ = State::key;
  sink.settle();
}

void TagCallReader::begin_value() {
  const std::string_view key = trim_blanks(key_);
  kind_ = types_->kind(name_, std::string(key));
  state_ = State::value;
  value_ = Value::begin;
  text_.clear();
  newline_ = false;
}

/// The key goes out together with the value's beginning, so that no member is left without a value.
void TagCallReader::value_text(std::string_view text, CallSink& sink) {
  for (const char c : text) {
    if (value_ == Value::begin) {
      if (text_.empty() && c == '\n' && tags_->newlines && !newline_) {
        newline_ = true;  // the one after the tag
        continue;
      }
      text_ += c;
      if (is_blank(c) && kind_ != ParameterTypes::Kind::string) continue;
      const bool json = std::string_view("{[-0123456789tfnTFN").find(c) != std::string_view::npos;
      const bool keep = kind_ == ParameterTypes::Kind::other || (kind_ == ParameterTypes::Kind::unknown && json);
      newline_ = false;
      if (keep) {
        value_ = Value::undecided;
        continue;
      }
      value_ = Value::string;
      std::string begin = std::exchange(first_, false) ? "{\"" : ", \"";
      append_json_escaped(begin, trim_blanks(key_));
      sink.arguments(begin + "\": \"");
      sink.settle();
      value_text(std::exchange(text_, {}), sink);
      continue;
    }
    if (value_ == Value::undecided) {
      text_ += c;
      continue;
    }
    std::string escaped;
    if (newline_) escaped = "\\n";
    newline_ = c == '\n' && tags_->newlines;
    if (!newline_) append_json_escaped(escaped, {&c, 1});
    sink.arguments(escaped);
    sink.settle();
  }
}

void TagCallReader::end_value(CallSink& sink) {
  state_ = State::body;
  if (value_ == Value::string) {
    sink.arguments("\"");
    sink.settle();
    return;
  }
  if (tags_->newlines && text_.ends_with('\n')) text_.pop_back();
  std::string member = std::exchange(first_, false) ? "{\"" : ", \"";
  append_json_escaped(member, trim_blanks(key_));
  member += "\": ";
  const std::string_view value = trim_blanks(text_);
  const bool other = kind_ == ParameterTypes::Kind::other;
  if (other && (value == "True" || value == "False" || value == "None")) {
    member += value == "True" ? "true" : value == "False" ? "false" : "null";
  } else if (kind_ != ParameterTypes::Kind::string && is_json(value)) {
    member += value;
  } else {
    member += '"';
    append_json_escaped(member, text_);
    member += '"';
  }
  sink.arguments(member);
  sink.settle();
}

void TagCallReader::finish(CallSink& sink) {
  if (!begun_) return;
  if (state_ == State::key || state_ == State::value_tag ||
      (state_ == State::value && value_ != Value::string)) {  // as far as it came
    const std::string key = state_ == State::key ? key_ + held_ : key_;
    std::string member = first_ ? "{\"" : ", \"";
    append_json_escaped(member, trim_blanks(key));
    if (state_ == State::value) {
      const std::string text = text_ + held_;
      member += "\": ";
      if (is_json(trim_blanks(text))) {
        member += trim_blanks(text);
      } else {
        member += '"';
        append_json_escaped(member, text);
      }
    }
    sink.arguments(member);
  } else if (state_ == State::value) {
    std::string rest = newline_ ? "\\n" : "";
    append_json_escaped(rest, held_);
    sink.arguments(rest);
  }
  sink.settle();
}

}  // namespace millrace
