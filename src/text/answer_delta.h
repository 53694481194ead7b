// What an answer consists of, as OpenAI's API tells it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace millrace {

struct ToolCallDelta {
  std::int32_t index = 0;  // of the call in the answer
  std::string name;        // whole, in the first delta of a call; then empty
  std::string arguments;   // to be appended: JSON text
};

/// What a piece of an answer added to each of its parts.
struct AnswerDelta {
  std::string content, reasoning;
  std::vector<ToolCallDelta> tool_calls;

  [[nodiscard]] bool empty() const { return content.empty() && reasoning.empty() && tool_calls.empty(); }
};

}  // namespace millrace
