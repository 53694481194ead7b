#include "text/answer_harmony.h"

#include <algorithm>
#include <utility>

namespace millrace {

namespace {

constexpr std::size_t kMaxHeader = 1024;
constexpr std::string_view kStart = "<|start|>", kChannel = "<|channel|>", kMessage = "<|message|>";
constexpr std::string_view kEnds[] = {kStart, kChannel, "<|end|>", "<|call|>", "<|return|>"};
constexpr int kKindNext = 0, kKindEnd = 1;  // begins the next header; only ends the message

/// A header begins with `text`, or may come to.
bool may_be_header(std::string_view text) {
  text = trim_blanks(text);
  constexpr std::string_view kBeginnings[] = {kStart, kChannel, "<|constrain|>", kMessage, "to="};
  return std::any_of(std::begin(kBeginnings), std::end(kBeginnings),
                     [&](std::string_view one) { return one.starts_with(text) || text.starts_with(one); });
}

/// The word after `mark`.
std::string_view word_after(std::string_view header, std::string_view mark) {
  const std::size_t at = header.find(mark);
  if (at == std::string_view::npos) return {};
  const std::string_view rest = header.substr(at + mark.size());
  return rest.substr(0, std::min(rest.find_first_of("< \n\t\r"), rest.size()));
}

}  // namespace

HarmonyAnswer::HarmonyAnswer(bool tools, std::string_view prompt) : tools_(tools) {
  for (const std::string_view end : kEnds) ends_.add(end, end == kStart || end == kChannel ? kKindNext : kKindEnd);
  constexpr std::string_view kTurn = "<|start|>assistant";
  const std::size_t at = prompt.rfind(kTurn);
  if (at == std::string_view::npos) return;
  AnswerDelta said;  // part of the prompt, not of the answer
  CallSink sink;
  sink.out = &said;
  for (const char c : prompt.substr(at + kTurn.size())) feed(c, sink);
}

void HarmonyAnswer::feed(char c, CallSink& sink) {
  if (state_ == State::header) return feed_header(c, sink);
  if (json_) {  // an end within a string is text
    std::string text;
    json_ = arguments_.feed(c, text) == JsonValue::Step::more;
    return sink.arguments(text);
  }
  if (held_.empty() && !ends_.may_begin(c)) return body_text(c, sink);
  held_ += c;
  int kind = 0;
  switch (ends_.find(held_, kind)) {
    case MarkSet::Found::beginning:
      return;
    case MarkSet::Found::whole: {
      const std::string mark = std::exchange(held_, {});
      end_body(mark, sink);
      if (kind == kKindNext) header_ = mark;
      return;
    }
    case MarkSet::Found::none: {
      const std::string text = std::exchange(held_, {});
      body_text(text[0], sink);
      for (const char next : std::string_view(text).substr(1)) feed(next, sink);
      return;
    }
  }
}

void HarmonyAnswer::feed_header(char c, CallSink& sink) {
  header_ += c;
  if (c == '>' && header_.ends_with(kMessage)) return begin_body(sink);
  // Everything before the beginning of a mark can be judged at its first characters, so only short headers are.
  constexpr std::size_t kLongest = 24;
  if (header_.size() <= kMaxHeader && (header_.size() > kLongest || may_be_header(header_))) return;
  state_ = State::body;  // no header at all
  body_ = Body::content;
  sink.out->content += std::exchange(header_, {});
}

void HarmonyAnswer::begin_body(CallSink& sink) {
  const std::string header = std::exchange(header_, {});
  state_ = State::body;
  std::string_view recipient = word_after(header, "to=");
  const std::string_view channel = word_after(header, kChannel);
  constexpr std::string_view kFunctions = "functions.";
  if (recipient.starts_with(kFunctions)) recipient.remove_prefix(kFunctions.size());
  if (recipient.empty() || recipient == "assistant" || recipient == "user" || recipient == "all") {
    body_ = channel == "analysis" ? Body::reasoning : Body::content;
  } else if (tools_) {
    body_ = Body::call;
    blanks_.clear();
    arguments_ = {};
    fresh_ = true;
    sink.begin(std::string(recipient));
  } else {
    body_ = Body::markup;
    sink.out->content += header;
  }
}

void HarmonyAnswer::body_text(char c, CallSink& sink) {
  switch (body_) {
    case Body::reasoning:
      sink.out->reasoning += c;
      return;
    case Body::content:
    case Body::markup:
      sink.out->content += c;
      return;
    case Body::call:
      break;
  }
  if (is_blank(c)) {
    blanks_ += c;
    return;
  }
  if (std::exchange(fresh_, false)) {
    if (c == '{' || c == '[' || c == '"') {
      blanks_.clear();
      json_ = true;
      return feed(c, sink);
    }
  }
  sink.arguments(std::exchange(blanks_, {}) + c);
}

void HarmonyAnswer::end_body(std::string_view mark, CallSink& sink) {
  if (body_ == Body::markup) sink.out->content += mark;
  if (body_ == Body::call) {
    if (fresh_) sink.arguments("{}");  // an empty body
    sink.end();
  }
  blanks_.clear();
  state_ = State::header;
  header_.clear();
}

void HarmonyAnswer::finish(CallSink& sink) {
  if (state_ == State::header) {
    const std::string_view header = trim_blanks(header_);
    if (!header.starts_with('<') && !header.starts_with("to=")) sink.out->content += header;
    return;  // anything else is a header that was cut off
  }
  if (json_) {
    std::string text;
    arguments_.finish(text);
    sink.arguments(text);
  }
  for (const char c : std::exchange(held_, {})) body_text(c, sink);
}

}  // namespace millrace
