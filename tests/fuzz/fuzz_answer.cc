// Any bytes as the answer of a model with any marks: however it is cut, the parts are the same, and calls are in order.
//
// The input: the source of a chat template, a zero byte, a byte of choices, the answer.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "text/answer_parser.h"

namespace {

using namespace millrace;

void require(bool condition) {
  if (!condition) std::abort();
}

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
      const auto count = static_cast<std::int32_t>(calls.size());
      require(call.name.empty() ? call.index + 1 == count : call.index == count);
      if (!call.name.empty()) calls.push_back({call.name, {}});
      calls.back().arguments += call.arguments;
    }
  }
};

Answer parse(const AnswerFormat& format, bool tools, std::string_view prompt, std::string_view text,
             std::size_t piece) {
  AnswerParser parser(format, tools, prompt);
  Answer answer;
  for (std::size_t at = 0; at < text.size(); at += piece) answer.add(parser.push(text.substr(at, piece)));
  answer.add(parser.finish());
  require(parser.called_tools() == !answer.calls.empty());
  require(tools || answer.calls.empty());
  return answer;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t end = input.find('\0');
  if (end == std::string_view::npos || end + 2 > size) return 0;
  const AnswerFormat format = AnswerFormat::detect(input.substr(0, end), nullptr);
  const bool tools = (data[end + 1] & 1U) == 0;
  const std::string_view prompt = (data[end + 1] & 2U) == 0 ? "" : "x <think>\n";
  const std::string_view text = input.substr(end + 2);
  const Answer whole = parse(format, tools, prompt, text, size);
  require(parse(format, tools, prompt, text, 1) == whole);
  require(parse(format, tools, prompt, text, 7) == whole);
  return 0;
}
