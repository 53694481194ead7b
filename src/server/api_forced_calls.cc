#include "server/api_forced_calls.h"

#include "server/api_json.h"

namespace millrace {

namespace {

bool is_space(char c) {
  return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

}  // namespace

AnswerDelta ForcedCalls::push(std::string_view text) {
  AnswerDelta delta;
  for (const char c : text) take(c, delta);
  return delta;
}

void ForcedCalls::take(char c, AnswerDelta& delta) {
  switch (at_) {
    case At::list:
      if (c != '{') return;
      ++call_;
      at_ = At::member;
      return;
    case At::member:
      if (c == '}') at_ = At::list;
      if (c != '"') return;
      string_.clear();
      at_ = At::key;
      return;
    case At::key:
      if (c != '"') {
        string_ += c;
        return;
      }
      key_ = string_;
      at_ = At::colon;
      return;
    case At::colon:
      if (c == ':') at_ = At::value;
      return;
    default:
      take_value(c, delta);
  }
}

void ForcedCalls::take_value(char c, AnswerDelta& delta) {
  if (at_ == At::value) {
    if (is_space(c)) return;
    quoted_ = escaped_ = false;
    depth_ = 1;
    at_ = c == '"' ? At::string : c == '{' || c == '[' ? At::nested : At::scalar;
    string_.clear();
    tell_argument(c, delta);
    return;
  }
  if (at_ == At::scalar && (c == ',' || c == '}' || is_space(c))) {
    at_ = c == '}' ? At::list : At::member;
    return;
  }
  tell_argument(c, delta);
  if (at_ == At::scalar) return;
  if (escaped_) {
    escaped_ = false;
    if (at_ == At::string) string_ += c;
    return;
  }
  escaped_ = c == '\\' && (at_ == At::string || quoted_);
  if (at_ == At::string) {
    if (c == '"') return end_string(delta);
    string_ += c;
    return;
  }
  if (c == '"') quoted_ = !quoted_;
  if (quoted_) return;
  if (c == '{' || c == '[') ++depth_;
  if ((c == '}' || c == ']') && --depth_ == 0) at_ = At::member;
}

void ForcedCalls::tell_argument(char c, AnswerDelta& delta) const {
  if (!in_arguments()) return;
  if (delta.tool_calls.empty() || delta.tool_calls.back().index != call_) {
    delta.tool_calls.push_back({.index = call_, .name = {}, .arguments = {}});
  }
  delta.tool_calls.back().arguments += c;
}

void ForcedCalls::end_string(AnswerDelta& delta) {
  at_ = At::member;
  if (key_ != "name") return;
  const Json name = Json::parse('"' + string_ + '"', nullptr, false);
  delta.tool_calls.push_back(
      {.index = call_, .name = name.is_string() ? name.get<std::string>() : string_, .arguments = {}});
}

}  // namespace millrace
