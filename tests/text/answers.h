// Answers, parsed whole and in every cut.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/answer_parser.h"

namespace millrace::test {

struct Call {
  std::string name, arguments;
  bool operator==(const Call&) const = default;
};

struct Answer {
  std::string content, reasoning;
  std::vector<Call> calls;
  bool operator==(const Answer&) const = default;

  void add(const AnswerDelta& delta) {
    content += delta.content;
    reasoning += delta.reasoning;
    for (const ToolCallDelta& call : delta.tool_calls) {
      if (call.index == static_cast<std::int32_t>(calls.size())) {
        EXPECT_FALSE(call.name.empty()) << "the first delta of a call has its name";
        calls.push_back({call.name, {}});
      } else {
        EXPECT_TRUE(call.name.empty());
        EXPECT_EQ(call.index, static_cast<std::int32_t>(calls.size()) - 1);
      }
      if (!calls.empty()) calls.back().arguments += call.arguments;
    }
  }
};

inline void PrintTo(const Answer& answer, std::ostream* out) {
  *out << "content \"" << answer.content << "\" reasoning \"" << answer.reasoning << '"';
  for (const Call& call : answer.calls) *out << " call " << call.name << '(' << call.arguments << ')';
}

struct Request {
  bool tools = true;
  std::string prompt = {};
  std::string tools_json = {};
};

/// The answer from pieces that end at `cuts` (ascending) and at the end.
inline Answer parse(const AnswerFormat& format, const Request& request, std::string_view text,
                    const std::vector<std::size_t>& cuts = {}) {
  AnswerParser parser(format, request.tools, request.prompt, request.tools_json);
  Answer answer;
  std::size_t from = 0;
  for (const std::size_t cut : cuts) {
    answer.add(parser.push(text.substr(from, cut - from)));
    from = cut;
  }
  answer.add(parser.push(text.substr(from)));
  answer.add(parser.finish());
  EXPECT_EQ(parser.called_tools(), !answer.calls.empty());
  return answer;
}

/// The answer, after checking that it is the same byte by byte and in two pieces, wherever cut.
inline Answer parse_every_way(const AnswerFormat& format, const Request& request, std::string_view text) {
  const Answer whole = parse(format, request, text);
  std::vector<std::size_t> every;
  for (std::size_t cut = 1; cut < text.size(); ++cut) {
    EXPECT_EQ(parse(format, request, text, {cut}), whole) << "cut at " << cut << " of: " << text;
    every.push_back(cut);
  }
  EXPECT_EQ(parse(format, request, text, every), whole) << "byte by byte: " << text;
  return whole;
}

}  // namespace millrace::test
