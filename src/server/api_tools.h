// Tools of a chat: what the model is told of, whether it has to call one, and what its answer then looks like.
#pragma once

#include <optional>
#include <string>

#include "server/api_answer.h"
#include "server/api_format.h"
#include "server/api_json.h"
#include "server/api_model.h"

namespace millrace {

/// tool_choice "auto" leaves it to the model, in its own format. "required" and a named function are made sure of by a
/// grammar that is the same for every model: the answer is a JSON list of {"name","arguments"}, or the arguments alone.
/// "none": the prompt does not mention the tools.
struct Tools {
  Json list;  // for the template; null: none
  ToolMode mode = ToolMode::none;
  std::string forced;                // of ToolMode::named
  bool parallel = true;              // parallel_tool_calls
  std::optional<FormatSpec> format;  // of ToolMode::named and required
};

/// Wrong fields are kept in fields.error.
Tools read_tools(Fields& fields, const ServedModel& model);

}  // namespace millrace
