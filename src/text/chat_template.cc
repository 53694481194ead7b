#include "text/chat_template.h"

#include <chrono>
#include <utility>

#include "text/ffi.h"

namespace millrace {

namespace {

/// The text of a special token: a string, or an object that carries it as "content". Empty: neither.
std::string token_text(const nlohmann::json& token) {
  if (token.is_string()) return token.get<std::string>();
  if (token.is_object() && token.contains("content") && token["content"].is_string()) {
    return token["content"].get<std::string>();
  }
  return {};
}

/// The variables that a template gets from the tokenizer.
nlohmann::ordered_json special_tokens(const nlohmann::json& config) {
  nlohmann::ordered_json tokens = nlohmann::ordered_json::object();
  const auto add = [&](const std::string& name, const nlohmann::json& value) {
    if (std::string text = token_text(value); name.ends_with("_token") && !text.empty()) tokens[name] = std::move(text);
  };
  if (!config.is_object()) return tokens;
  for (const auto& [name, value] : config.items()) add(name, value);
  // Tokens that only some models have (image_token, ...) stand in an object of their own.
  for (const char* group : {"extra_special_tokens", "model_specific_special_tokens"}) {
    if (!config.contains(group) || !config[group].is_object()) continue;
    for (const auto& [name, value] : config[group].items()) add(name, value);
  }
  return tokens;
}

struct Sources {
  std::string main, tool_use;
};

/// `source` wins over the config's template; the named templates of a list go together.
Sources choose(std::string source, const nlohmann::json& config) {
  Sources chosen{std::move(source), {}};
  if (!config.is_object() || !config.contains("chat_template")) return chosen;
  const nlohmann::json& given = config["chat_template"];
  if (given.is_string() && chosen.main.empty()) chosen.main = given.get<std::string>();
  if (!given.is_array()) return chosen;
  Sources named;
  for (const nlohmann::json& entry : given) {
    if (!entry.is_object()) continue;
    const std::string name = entry.value("name", "");
    const std::string text = entry.value("template", "");
    if (name == "default") named.main = text;
    if (name == "tool_use") named.tool_use = text;
  }
  if (chosen.main.empty() || chosen.main == named.main) return named;
  return chosen;
}

}  // namespace

LocalTime LocalTime::now() {
  const auto instant = std::chrono::system_clock::now().time_since_epoch();
  const auto micros = std::chrono::duration_cast<std::chrono::microseconds>(instant).count();
  const std::time_t seconds = micros / 1'000'000;
  LocalTime now;
  ::localtime_r(&seconds, &now.time);
  now.microsecond = static_cast<std::int32_t>(micros % 1'000'000);
  return now;
}

void ChatTemplate::Free::operator()(ffi::Template* handle) const {
  ffi::millrace_template_free(handle);
}

Result<ChatTemplate::Handle> ChatTemplate::compile(const std::string& source, const std::string& globals) {
  ffi::Bytes error;
  ffi::Template* handle = nullptr;
  if (ffi::millrace_template_new(source.data(), source.size(), globals.data(), globals.size(), &handle, error.out()) !=
      0) {
    return error.error();
  }
  return Handle(handle);
}

Result<ChatTemplate> ChatTemplate::create(std::string source, const nlohmann::json& tokenizer_config, Clock clock) try {
  const Sources sources = choose(std::move(source), tokenizer_config);
  if (sources.main.empty()) return fail("no chat template: expected a Jinja text, or one named \"default\"");
  const std::string globals = special_tokens(tokenizer_config).dump();
  ChatTemplate made;
  MILLRACE_TRY(made.default_, compile(sources.main, globals));
  if (!sources.tool_use.empty()) {
    MILLRACE_TRY(made.tool_use_, compile(sources.tool_use, globals));
  }
  made.clock_ = std::move(clock);
  return made;
} catch (const nlohmann::json::exception& error) {  // a text that is not UTF-8, a field of the wrong type
  return fail("tokenizer_config: {}", error.what());
}

Result<std::string> ChatTemplate::render(const nlohmann::ordered_json& context) const try {
  const bool tools = context.is_object() && context.contains("tools") && !context["tools"].is_null();
  const Handle& chosen = tools && tool_use_ != nullptr ? tool_use_ : default_;
  const std::string text = context.dump();
  const LocalTime now = clock_();
  ffi::Bytes out;
  if (ffi::millrace_template_render(chosen.get(), text.data(), text.size(), &now.time, now.microsecond, out.out()) !=
      0) {
    return out.error();
  }
  return out.string();
} catch (const nlohmann::json::exception& error) {
  return fail("the messages are not UTF-8: {}", error.what());
}

Result<std::string> ChatTemplate::render_messages(std::string_view messages_json) const {
  nlohmann::ordered_json messages = nlohmann::ordered_json::parse(messages_json, nullptr, false);
  if (messages.is_discarded()) return fail("the messages are not JSON");
  return render({{"messages", std::move(messages)}, {"add_generation_prompt", true}});
}

}  // namespace millrace
