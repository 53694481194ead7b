// ChatTemplate: messages to the text that a model expects, as transformers' apply_chat_template renders it.
#pragma once

#include <ctime>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "core/result.h"

namespace millrace {

namespace ffi {
struct Template;
}

/// The local time that a template's strftime_now() tells.
struct LocalTime {
  std::tm time{};
  std::int32_t microsecond = 0;

  static LocalTime now();
};

/// Movable, not copyable. Const methods may be called from several threads at once.
class ChatTemplate {
 public:
  using Clock = std::function<LocalTime()>;

  /// `source`: Jinja text; empty: that of tokenizer_config's "chat_template". Where the latter is a list of named
  /// templates, "default" is used, and "tool_use" for renderings with tools. The special tokens of `tokenizer_config`
  /// (bos_token, eos_token, ...: strings, or objects with "content") are variables of every rendering.
  /// Errors: no template; one that does not compile, with the line.
  static Result<ChatTemplate> create(std::string source, const nlohmann::json& tokenizer_config,
                                     Clock clock = LocalTime::now);

  /// `context`: an object with the keys messages, tools, documents, add_generation_prompt (default false) and any other
  /// variable that the template reads. As in transformers, message keys whose value is null are dropped, and reasoning
  /// is found under reasoning_content whichever of its names it came by. Error: the message of the template's own
  /// raise_exception, or one line that says what failed and where.
  [[nodiscard]] Result<std::string> render(const nlohmann::ordered_json& context) const;

  /// `messages_json`: a JSON list of messages; add_generation_prompt = true.
  [[nodiscard]] Result<std::string> render_messages(std::string_view messages_json) const;

 private:
  struct Free {
    void operator()(ffi::Template* handle) const;
  };
  using Handle = std::unique_ptr<ffi::Template, Free>;

  static Result<Handle> compile(const std::string& source, const std::string& globals);

  Handle default_;
  Handle tool_use_;  // may be null
  Clock clock_;
};

}  // namespace millrace
