// Messages of a chat: checked, and rendered by the model's template.
#pragma once

#include <string>

#include "server/api_error.h"
#include "server/api_json.h"
#include "server/api_model.h"

namespace millrace {

struct ChatPrompt {
  std::string text;
  std::size_t system_bytes =
      0;  // of it, before the content of the first message that is not the system's; where that is wanted
};

/// The prompt of a chat. `fields`: of the body; read are messages, add_generation_prompt, continue_final_message,
/// chat_template_kwargs, reasoning_effort and documents. `tools`: for the template, or null. `think`: false where the
/// answer is constrained from its first token, so that a template that can leave out reasoning does, unless the body
/// says otherwise.
///
/// Content may be a string or a list of text parts, which are joined by line breaks. Arguments of tool calls, in the
/// API the text of an object, are handed to the template as an object, or as text where it cannot do with that. The
/// role "developer" becomes "system" for templates that do not know it. Errors (400): no template, wrong messages,
/// whatever the template itself refuses.
ApiResult<ChatPrompt> render_chat(Fields& fields, const ServedModel& model, const Json& tools, bool think);

}  // namespace millrace
