#include "server/api_messages.h"

#include <fmt/format.h>

#include <array>
#include <string_view>
#include <utility>

namespace millrace {

namespace {

constexpr std::string_view kSpaces = " \t\n\r\f\v";

/// The text of content that is a list of parts.
std::string join_parts(const Json& parts, const std::string& path, Fields& errors) {
  std::string text;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::string where = fmt::format("{}[{}]", path, i);
    if (!parts[i].is_object()) {
      errors.refuse(invalid_type(where, "an object", parts[i]));
      return text;
    }
    Fields part(parts[i], where);
    const std::string type = part.text("type", "");
    const char* const key = type == "refusal" ? "refusal" : "text";
    if (!part.has("type")) {
      part.refuse(missing(part.path("type")));
    } else if (type != "text" && type != "refusal") {
      part.refuse(
          invalid_value(part.path("type"), fmt::format("'{}': this model takes text only", type.substr(0, 64))));
    } else if (!part.has(key)) {
      part.refuse(missing(part.path(key)));
    }
    if (i != 0) text += '\n';
    text += part.text(key, "");
    if (part.error) {
      errors.refuse(*part.error);
      return text;
    }
  }
  return text;
}

/// The calls of an assistant's message: `arguments` becomes an object.
void read_calls(Json& calls, const std::string& path, Fields& errors) {
  for (std::size_t i = 0; i < calls.size() && !errors.error; ++i) {
    const std::string where = fmt::format("{}[{}]", path, i);
    if (!calls[i].is_object()) {
      errors.refuse(invalid_type(where, "an object", calls[i]));
      return;
    }
    Fields call(calls[i], where);
    (void)call.text("id", "");
    const Json* function = call.object("function");
    if (function == nullptr) {
      call.refuse(missing(call.path("function")));
    } else {
      Fields inner(*function, call.path("function"));
      if (!inner.has("name")) inner.refuse(missing(inner.path("name")));
      (void)inner.text("name", "");
      Json& arguments = calls[i]["function"]["arguments"];
      if (arguments.is_string()) {
        const auto& text = arguments.get_ref<const std::string&>();
        const bool blank = text.find_first_not_of(kSpaces) == std::string::npos;
        ApiResult<Json> object = blank ? ApiResult<Json>(Json::object()) : parse_body(text);
        if (object.ok()) {
          arguments = std::move(object).value();
        } else {
          inner.refuse(invalid_value(inner.path("arguments"), "expected the text of a JSON object"));
        }
      } else if (arguments.is_null()) {
        arguments = Json::object();
      } else if (!arguments.is_object()) {
        inner.refuse(invalid_type(inner.path("arguments"), "a string", arguments));
      }
      if (inner.error) call.refuse(*inner.error);
    }
    if (call.error) errors.refuse(*call.error);
  }
}

void read_message(Json& message, const std::string& path, bool knows_developer, Fields& errors) {
  if (!message.is_object()) {
    errors.refuse(invalid_type(path, "an object", message));
    return;
  }
  constexpr std::array<std::string_view, 6> kRoles = {"system", "developer", "user", "assistant", "tool", "function"};
  Fields fields(message, path);
  if (!fields.has("role")) fields.refuse(missing(fields.path("role")));
  const std::string role = fields.choice("role", "user", kRoles);
  for (const char* key : {"name", "tool_call_id", "reasoning_content", "reasoning"}) (void)fields.text(key, "");
  const Json* calls = role == "assistant" ? fields.array("tool_calls") : nullptr;
  const Json* content = fields.find("content");
  std::string joined;
  if (content == nullptr) {
    if (role != "assistant") fields.refuse(missing(fields.path("content")));
  } else if (content->is_array()) {
    joined = join_parts(*content, fields.path("content"), fields);
  } else if (!content->is_string()) {
    fields.refuse(invalid_type(fields.path("content"), "a string or an array of parts", *content));
  }
  if (fields.error) {
    errors.refuse(*fields.error);
    return;
  }
  if (content != nullptr && content->is_array()) message["content"] = std::move(joined);
  if (calls != nullptr && calls->empty())
    message.erase("tool_calls");
  else if (calls != nullptr)
    read_calls(message["tool_calls"], path + ".tool_calls", errors);
  if (role == "developer" && !knows_developer) message["role"] = "system";
}

Json read_messages(Fields& fields, const ServedModel& model) {
  const Json* list = fields.array("messages");
  if (list == nullptr) {
    fields.refuse(missing("messages"));
    return {};
  }
  if (list->empty()) fields.refuse(invalid_value("messages", "an empty list"));
  const bool knows_developer = model.template_source.find("developer") != std::string::npos;
  Json messages = *list;
  for (std::size_t i = 0; i < messages.size() && !fields.error; ++i) {
    read_message(messages[i], fmt::format("messages[{}]", i), knows_developer, fields);
  }
  return messages;
}

/// Arguments of calls as text, for templates that write them as they are.
bool arguments_to_text(Json& messages) {
  bool any = false;
  for (Json& message : messages) {
    if (!message.contains("tool_calls")) continue;
    for (Json& call : message["tool_calls"]) {
      Json& arguments = call["function"]["arguments"];
      arguments = arguments.dump();
      any = true;
    }
  }
  return any;
}

ApiResult<std::string> render(const ServedModel& model, Json& context) {
  auto prompt = model.chat_template->render(context);
  if (!prompt.ok() && arguments_to_text(context["messages"])) {
    if (auto second = model.chat_template->render(context); second.ok()) prompt = std::move(second);
  }
  if (prompt.ok()) return std::move(prompt).value();
  return invalid_value("messages", "the model's chat template: " + prompt.error().message);
}

/// The prompt up to the end of the last message's content, so that the model goes on with it. A template may have
/// stripped the content.
ApiResult<std::string> cut_after_content(std::string prompt, const Json& message) {
  std::string_view content;
  if (const auto found = message.find("content"); found != message.end() && found->is_string()) {
    content = found->get_ref<const std::string&>();
  }
  const std::size_t begin = std::min(content.find_first_not_of(kSpaces), content.size());
  const std::string_view right = content.substr(begin);
  const std::string_view both = right.substr(0, right.find_last_not_of(kSpaces) + 1);
  for (const std::string_view text : {right, both}) {
    const std::size_t at = text.empty() ? std::string::npos : prompt.rfind(text);
    if (at == std::string::npos) continue;
    prompt.resize(at + text.size());
    return prompt;
  }
  return invalid_value("continue_final_message", "the chat template does not write the last message's content");
}

/// Bytes of the prompt before what the first message says that is not the system's: as far as it stays the same with
/// something else in its place. 0 where that cannot be told.
std::size_t system_end(const ServedModel& model, std::string_view prompt, Json context) {
  constexpr std::string_view kElse = "\xEF\xA3\xBF something else \xEF\xA3\xBF";
  for (Json& message : context["messages"]) {
    const Json& role = message["role"];
    if (role == "system" || role == "developer") continue;
    message["content"] = kElse;
    const auto other = model.chat_template->render(context);
    if (!other.ok() || other->find(kElse) == std::string::npos) return 0;
    const std::string_view before = std::string_view(*other).substr(0, other->find(kElse));
    return static_cast<std::size_t>(std::ranges::mismatch(prompt, before).in1 - prompt.begin());
  }
  return 0;
}

}  // namespace

ApiResult<ChatPrompt> render_chat(Fields& fields, const ServedModel& model, const Json& tools, bool think) {
  if (model.chat_template == nullptr) {
    return ApiError{.status = 400,
                    .message = "This model has no chat template, so it cannot chat; see /v1/completions.",
                    .param = "model"};
  }
  Json context = Json::object();
  if (!think) {
    for (const char* key : {"enable_thinking", "thinking"}) context[key] = false;
  }
  if (const Json* extra = fields.object("chat_template_kwargs")) {
    for (const auto& [key, value] : extra->items()) context[key] = value;
  }
  if (fields.has("reasoning_effort")) context["reasoning_effort"] = fields.text("reasoning_effort", "");
  if (const Json* documents = fields.array("documents")) context["documents"] = *documents;
  context["messages"] = read_messages(fields, model);
  if (!tools.is_null()) context["tools"] = tools;
  const bool goes_on = fields.boolean("continue_final_message", false);
  const bool generation_prompt = fields.boolean("add_generation_prompt", !goes_on);
  if (goes_on && generation_prompt) {
    fields.refuse(invalid_value("continue_final_message", "not together with 'add_generation_prompt'"));
  }
  context["add_generation_prompt"] = generation_prompt;
  if (fields.error) return *fields.error;
  MILLRACE_TRY(std::string prompt, render(model, context));
  const std::size_t system_bytes = model.pins_system ? system_end(model, prompt, context) : 0;
  if (goes_on) {
    MILLRACE_TRY(prompt, cut_after_content(std::move(prompt), context["messages"].back()));
  }
  return ChatPrompt{std::move(prompt), system_bytes};
}

}  // namespace millrace
