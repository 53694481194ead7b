#include "text/answer_format.h"

#include <algorithm>
#include <utility>

#include "text/detokenizer.h"

namespace millrace {

namespace {

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

/// The marks of tool calls. Most telling ones first: several families share <tool_call>.
AnswerMarks calls_of(std::string_view source) {
  const auto has = [&](std::string_view part) { return contains(source, part); };
  AnswerMarks marks;
  if (has("<|channel|>") && has("<|message|>")) {
    marks.syntax = CallSyntax::harmony;
    marks.inside = {"<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"};
  } else if (has("<|tool_call>") && has("<tool_call|>")) {
    marks.syntax = CallSyntax::gemma;
    marks.call_open = {"<|tool_call>"};
    marks.call_close = {"<tool_call|>"};
    marks.inside = {"<|\"|>"};
  } else if (has("<｜tool▁call▁begin｜>")) {
    marks.syntax = CallSyntax::deepseek;
    marks.call_group = {"<｜tool▁calls▁begin｜>"};
    marks.call_open = {"<｜tool▁call▁begin｜>"};
    marks.call_close = {"```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"};
    marks.inside = {"<｜tool▁sep｜>"};
  } else if (has("<|START_ACTION|>")) {
    marks.syntax = CallSyntax::json;
    marks.call_open = {"<|START_ACTION|>"};
    marks.call_close = {"<|END_ACTION|>"};
  } else if (has("[TOOL_CALLS]")) {
    marks.syntax = CallSyntax::mistral;
    marks.call_open = {"[TOOL_CALLS]"};
    marks.inside = {"[CALL_ID]", "[ARGS]"};
  } else if (has("<arg_key>") && has("<arg_value>")) {
    marks.syntax = CallSyntax::pairs;
    marks.call_open = {"<tool_call>"};
    marks.call_close = {"</tool_call>"};
  } else if (has("<function=") && has("<parameter=")) {
    marks.syntax = CallSyntax::xml;
    marks.call_open = {"<tool_call>", "<function="};  // the first one is sometimes left out
    marks.call_close = {"</tool_call>"};
  } else if (has("<|tool_call|>") || has("functools") || (has("<|tool|>") && has("<|/tool|>"))) {
    marks.syntax = CallSyntax::json;  // Granite 3; Phi-4-mini, whose template has no call in it
    marks.call_open = {"<|tool_call|>", "<tool_call>", "functools"};
    marks.call_close = {"<|/tool_call|>", "</tool_call>"};
  } else if (has("<tool_call>")) {
    marks.syntax = CallSyntax::json;
    marks.call_open = {"<tool_call>"};
    marks.call_close = {"</tool_call>"};
  } else if (has("<|python_tag|>") || has(R"({"name": function name, "parameters": )")) {
    marks.syntax = CallSyntax::bare_json;
    marks.call_open = {"<|python_tag|>"};
  } else if (has("<|observation|>") && has("metadata") && has("[gMASK]")) {
    marks.syntax = CallSyntax::bare_named;
    marks.call_open = {"<|assistant|>"};  // before a second call
    marks.call_close = {"<|observation|>"};
  }
  return marks;
}

struct ReasoningMarks {
  std::string_view open, close;
  bool special;  // in every tokenizer that has them
};
constexpr ReasoningMarks kReasoning[] = {
    {"<|START_THINKING|>", "<|END_THINKING|>", true},
    {"<|channel>thought", "<channel|>", true},
    {"[THINK]", "[/THINK]", true},
    {"<think>", "</think>", false},
    {"<seed:think>", "</seed:think>", false},
};

}  // namespace

std::vector<std::string> AnswerMarks::all() const {
  std::vector<std::string> marks;
  for (const auto* list : {&call_open, &call_close, &call_group, &inside, &wrappers}) {
    marks.insert(marks.end(), list->begin(), list->end());
  }
  if (!reasoning_open.empty()) marks.push_back(reasoning_open);
  if (!reasoning_close.empty()) marks.push_back(reasoning_close);
  return marks;
}

AnswerFormat AnswerFormat::detect(std::string_view chat_template_source, const Tokenizer* tokenizer) {
  AnswerMarks marks = calls_of(chat_template_source);
  if (marks.syntax != CallSyntax::harmony) {
    for (const ReasoningMarks& reasoning : kReasoning) {
      if (!contains(chat_template_source, reasoning.open) && !contains(chat_template_source, reasoning.close)) continue;
      marks.reasoning_open = reasoning.open;
      marks.reasoning_close = reasoning.close;
      marks.reasoning_anywhere = reasoning.special;
      break;
    }
  }
  if (contains(chat_template_source, "<|START_RESPONSE|>")) {
    marks.wrappers = {"<|START_RESPONSE|>", "<|END_RESPONSE|>"};
  } else if (contains(chat_template_source, "<response></response>")) {  // Granite 3.3
    marks.wrappers = {"<response>", "</response>"};
    marks.wrappers_need_reasoning = true;
  }

  AnswerFormat format;
  if (tokenizer != nullptr) {
    std::vector<std::string> special = Detokenizer::special_tokens(*tokenizer);
    const std::vector<std::string> all = marks.all();
    const auto is_mark = [&](const std::string& token) {
      return !token.empty() &&
             std::any_of(all.begin(), all.end(), [&](const auto& mark) { return contains(mark, token); });
    };
    format.special_text_ = std::any_of(special.begin(), special.end(), is_mark);
    marks.reasoning_anywhere |= std::find(special.begin(), special.end(), marks.reasoning_open) != special.end();
    format.special_ = std::make_shared<const SpecialTexts>(std::move(special), all);
  }
  format.marks_ = std::make_shared<const AnswerMarks>(std::move(marks));
  return format;
}

}  // namespace millrace
