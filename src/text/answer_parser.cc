#include "text/answer_parser.h"

#include <algorithm>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>

#include "text/answer_calls.h"
#include "text/answer_harmony.h"
#include "text/answer_marks.h"
#include "text/special_filter.h"

namespace millrace {

namespace {

/// Every format but harmony: content, in which marks open reasoning and calls.
class TaggedAnswer {
 public:
  TaggedAnswer(const AnswerFormat& format, bool tools, std::string_view prompt, std::string_view tools_json)
      : format_(format), tools_(tools && format.has_tools()) {
    const AnswerMarks& marks = format_.marks();
    if (tools_ && (marks.syntax == CallSyntax::xml || marks.syntax == CallSyntax::pairs)) {
      types_ = ParameterTypes(tools_json);
    }
    if (tools_) {
      for (const std::string& mark : marks.call_open) content_marks_.add(mark, kCallOpen);
      for (const std::string& mark : marks.call_group) content_marks_.add(mark, kCallGroup);
      for (const std::string& mark : marks.call_close) content_marks_.add(mark, kCallClose);
    }
    for (const std::string& mark : marks.wrappers) content_marks_.add(mark, kWrapper);
    content_marks_.add(marks.reasoning_open, kReasoningOpen);
    reasoning_marks_.add(marks.reasoning_open, kReasoningOpen);
    reasoning_marks_.add(marks.reasoning_close, kReasoningClose);
    strips_ = tools_ || !marks.reasoning_close.empty();
    while (!prompt.empty() && is_blank(prompt.back())) prompt.remove_suffix(1);
    if (!marks.reasoning_open.empty() && prompt.ends_with(marks.reasoning_open)) mode_ = Mode::reasoning;
  }

  void feed(char c, CallSink& sink) {
    switch (mode_) {
      case Mode::content:
        if (held_.empty() && begins_bare_call(c)) {
          sink.pending = std::exchange(blanks_, {});
          mode_ = Mode::call;
          tried_bare_ = true;
          return feed_call(c, sink);
        }
        return look_for(content_marks_, c, sink);
      case Mode::reasoning:
        return look_for(reasoning_marks_, c, sink);
      case Mode::call:
        return feed_call(c, sink);
    }
  }

  void finish(CallSink& sink) {
    if (mode_ == Mode::call) {
      std::visit(
          [&](auto& reader) {
            if constexpr (!std::is_same_v<std::decay_t<decltype(reader)>, std::monostate>) reader.finish(sink);
          },
          reader_);
      mode_ = Mode::content;
      after_call_ = sink.open;
      for (const char c : std::exchange(sink.pending, {})) say(c, sink);
    }
    if (mode_ == Mode::content && after_call_) held_.clear();  // of the mark that closes the call
    for (const char c : std::exchange(held_, {})) say(c, sink);
    if (mode_ == Mode::reasoning) {
      if (!fresh_) sink.out->reasoning += blanks_;
    } else if (!after_call_ && !drop_blanks_) {
      sink.out->content += blanks_;
    }
    blanks_.clear();
  }

 private:
  enum class Mode : std::uint8_t { content, reasoning, call };
  enum Kind : int { kCallOpen, kCallGroup, kCallClose, kWrapper, kReasoningOpen, kReasoningClose };

  /// A call that no mark announces: the whole answer, or the next one after a call.
  [[nodiscard]] bool begins_bare_call(char c) const {
    if (!tools_) return false;
    const CallSyntax syntax = format_.marks().syntax;
    if (after_call_) {
      const bool json = syntax == CallSyntax::json || syntax == CallSyntax::bare_json || syntax == CallSyntax::mistral;
      return json && !closed_ && c == '{';
    }
    if (said_ || tried_bare_) return false;
    return syntax == CallSyntax::bare_json ? c == '{' : syntax == CallSyntax::bare_named && !is_blank(c) && c != '<';
  }

  void look_for(const MarkSet& marks, char c, CallSink& sink) {
    if (held_.empty() && !marks.may_begin(c)) return say(c, sink);
    held_ += c;
    int kind = 0;
    const MarkSet::Found found = marks.find(held_, kind);
    if (found == MarkSet::Found::beginning) return;
    const std::string text = std::exchange(held_, {});
    if (found == MarkSet::Found::whole) {
      if (on_mark(kind, text, sink)) return;
      for (const char next : text) say(next, sink);  // text that looks like a mark
      return;
    }
    say(text[0], sink);
    for (const char next : std::string_view(text).substr(1)) feed(next, sink);
  }

  /// False: at this place it is text.
  bool on_mark(int kind, const std::string& text, CallSink& sink) {
    const AnswerMarks& marks = format_.marks();
    switch (kind) {
      case kReasoningOpen:
        if (mode_ == Mode::reasoning) return fresh_;  // the prompt has opened it, and so does the model
        if (said_ && !marks.reasoning_anywhere) return false;
        blanks_.clear();
        mode_ = Mode::reasoning;
        fresh_ = true;
        return true;
      case kReasoningClose:
        mode_ = Mode::content;
        blanks_.clear();
        reasoned_ = true;
        drop_blanks_ = !said_;
        after_call_ = false;
        return true;
      case kWrapper:
        if (marks.wrappers_need_reasoning && !reasoned_) return false;
        if (!said_) drop_blanks_ = true;
        return true;
      case kCallGroup:
        blanks_.clear();
        drop_blanks_ = true;
        return true;
      case kCallClose:
        if (!after_call_) return false;
        closed_ = true;
        blanks_.clear();
        return true;
      default:
        if (marks.syntax == CallSyntax::bare_named && !after_call_) return false;
        sink.pending = std::exchange(blanks_, {}) + text;
        opened_by_ = text;
        mode_ = Mode::call;
        // What names the call itself can be read at once; for the others the first character decides.
        if (text == "<function=") reader_.emplace<TagCallReader>(CallSyntax::xml, true, &types_);
        return true;
    }
  }

  /// Text of content or reasoning. White space is held back until it is known what follows.
  void say(char c, CallSink& sink) {
    const bool reasoning = mode_ == Mode::reasoning;
    std::string& part = reasoning ? sink.out->reasoning : sink.out->content;
    if (!strips_) {
      part += c;
      return;
    }
    const bool separator = c == ';' && after_call_ && !closed_ && format_.marks().syntax == CallSyntax::bare_json;
    if (is_blank(c) || separator) {
      if (!(reasoning && fresh_)) blanks_ += c;
      return;
    }
    if (!reasoning && drop_blanks_) blanks_.erase(0, std::min(blanks_.find_first_not_of(" \n\t\r"), blanks_.size()));
    part += blanks_;
    part += c;
    blanks_.clear();
    if (reasoning) {
      fresh_ = false;
    } else {
      said_ = true;
      drop_blanks_ = after_call_ = false;
    }
  }

  void feed_call(char c, CallSink& sink) {
    if (std::holds_alternative<std::monostate>(reader_)) {
      if (is_blank(c) && !is_bare_named()) {
        sink.pending += c;
        return;
      }
      choose(c);
    }
    sink.pending += c;
    const CallStep step = std::visit(
        [&](auto& reader) {
          if constexpr (std::is_same_v<std::decay_t<decltype(reader)>, std::monostate>) {
            return CallStep::failed;
          } else {
            return reader.feed(c, sink);
          }
        },
        reader_);
    if (step == CallStep::more) return;
    const bool called = step == CallStep::done || sink.calls > calls_;
    calls_ = sink.calls;
    reader_.emplace<std::monostate>();
    mode_ = Mode::content;
    if (called) {
      sink.end();
      after_call_ = true;
      closed_ = false;
      drop_blanks_ = !said_;
    }
    std::string text = std::exchange(sink.pending, {});
    opened_by_.clear();
    if (step == CallStep::done) return;
    if (!text.empty()) text.pop_back();  // `c`, which is not part of it
    for (const char next : text) say(next, sink);
    feed(c, sink);
  }

  [[nodiscard]] bool is_bare_named() const { return format_.marks().syntax == CallSyntax::bare_named; }

  /// Which reader the first character after the mark asks for.
  void choose(char c) {
    const CallSyntax syntax = format_.marks().syntax;
    const bool json = c == '{' || c == '[';
    switch (syntax) {
      case CallSyntax::bare_json:
        if (!json && !opened_by_.empty()) {
          reader_.emplace<PythonCallReader>();
          return;
        }
        reader_.emplace<JsonCallReader>(opened_by_.empty(), false);
        return;
      case CallSyntax::xml:
      case CallSyntax::pairs:
        if (json) break;
        reader_.emplace<TagCallReader>(syntax, false, &types_);
        return;
      case CallSyntax::mistral:
        if (json) break;
        reader_.emplace<NamedCallReader>(syntax);
        return;
      case CallSyntax::deepseek:
      case CallSyntax::gemma:
      case CallSyntax::bare_named:
        reader_.emplace<NamedCallReader>(syntax);
        return;
      default:
        break;
    }
    reader_.emplace<JsonCallReader>(false, opened_by_ == "functools");
  }

  AnswerFormat format_;
  bool tools_;
  ParameterTypes types_;
  MarkSet content_marks_, reasoning_marks_;
  Mode mode_ = Mode::content;
  CallReader reader_;
  std::string opened_by_;     // the mark of the call that is being read; empty: none
  std::string held_;          // the beginning of a mark
  std::string blanks_;        // white space that has come and is not told
  bool strips_ = false;       // white space next to marks is part of them
  bool fresh_ = true;         // nothing has been reasoned since the mark
  bool said_ = false;         // there is content
  bool tried_bare_ = false;   // the answer's beginning has been looked at as a call
  bool reasoned_ = false;     // there was reasoning
  bool drop_blanks_ = false;  // white space that comes next follows a mark
  bool after_call_ = false;   // nothing but white space and marks since a call
  bool closed_ = false;       // among them one that closes
  std::int32_t calls_ = 0;    // begun until the last call was read to its end
};

}  // namespace

class AnswerParser::Impl {
 public:
  Impl(const AnswerFormat& format, bool tools, std::string_view prompt, std::string_view tools_json) {
    if (format.special_text()) filter_.emplace(format.special_texts());
    if (format.harmony()) {
      answer_.emplace<HarmonyAnswer>(tools, prompt);
    } else {
      answer_.emplace<TaggedAnswer>(format, tools, prompt, tools_json);
    }
  }

  AnswerDelta push(std::string_view text, bool last) {
    AnswerDelta delta;
    sink_.out = &delta;
    std::string filtered;
    if (filter_) {
      filter_->push(text, filtered);
      if (last) filter_->finish(filtered);
      text = filtered;
    }
    std::visit(
        [&](auto& answer) {
          if constexpr (!std::is_same_v<std::decay_t<decltype(answer)>, std::monostate>) {
            for (const char c : text) answer.feed(c, sink_);
            if (last) answer.finish(sink_);
          }
        },
        answer_);
    sink_.out = nullptr;
    return delta;
  }

  [[nodiscard]] bool called_tools() const { return sink_.calls > 0; }

 private:
  std::optional<SpecialFilter> filter_;
  std::variant<std::monostate, TaggedAnswer, HarmonyAnswer> answer_;
  CallSink sink_;
};

AnswerParser::AnswerParser(const AnswerFormat& format, bool tools, std::string_view rendered_prompt,
                           std::string_view tools_json)
    : impl_(std::make_unique<Impl>(format, tools, rendered_prompt, tools_json)) {}
AnswerParser::AnswerParser(AnswerParser&&) noexcept = default;
AnswerParser& AnswerParser::operator=(AnswerParser&&) noexcept = default;
AnswerParser::~AnswerParser() = default;

AnswerDelta AnswerParser::push(std::string_view text) {
  return impl_->push(text, false);
}

AnswerDelta AnswerParser::finish() {
  return impl_->push({}, true);
}

bool AnswerParser::called_tools() const {
  return impl_->called_tools();
}

}  // namespace millrace
