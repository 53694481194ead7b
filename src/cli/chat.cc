#include "cli/chat.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <optional>

#include "cli/interrupt.h"

namespace millrace::cli {

namespace {

/// A line of standard input without its newline; empty at the end of input. An interrupt gives an empty line.
std::optional<std::string> read_line() {
  std::string line;
  while (true) {
    char c = 0;
    const ssize_t got = ::read(STDIN_FILENO, &c, 1);
    if (got < 0 && errno == EINTR) {
      Interrupts::take();
      print_now("\n");
      return std::string();
    }
    if (got <= 0) return line.empty() ? std::nullopt : std::optional(line);
    if (c == '\n') return line;
    line += c;
  }
}

}  // namespace

Result<Conversation> Conversation::open(const LoadedModel& model, EngineCore& engine, Request base,
                                        const std::string& system) {
  if (!model.tokenizer) return fail("--chat needs a tokenizer, and {} has none", model.path);
  if (!model.chat_template) return fail("--chat needs a chat template, and {} has none", model.path);
  Conversation conversation(model, engine, std::move(base));
  if (!system.empty()) conversation.messages_.push_back({{"role", "system"}, {"content", system}});
  return conversation;
}

Result<Generated> Conversation::ask(const std::string& message,
                                    const std::function<void(const std::string&)>& on_text) {
  nlohmann::ordered_json messages = messages_;
  messages.push_back({{"role", "user"}, {"content", message}});
  // What was typed need not be UTF-8; a replacement character is better than the end of the conversation.
  constexpr auto kReplace = nlohmann::ordered_json::error_handler_t::replace;
  MILLRACE_TRY(const std::string prompt,
               model_->chat_template->render_messages(messages.dump(-1, ' ', false, kReplace)));
  Request request = base_;
  MILLRACE_TRY(request.prompt, model_->tokenizer->encode(prompt, false));
  prompt_tokens_ = request.prompt.size();
  MILLRACE_TRY(Generated answer,
               generate(*engine_, std::move(request), [&](const TokenEvent& event) { on_text(event.text); }));
  messages.push_back({{"role", "assistant"}, {"content", answer.text}});
  messages_ = std::move(messages);
  return answer;
}

Status Conversation::talk(const std::string& first) {
  const bool terminal = ::isatty(STDIN_FILENO) != 0;
  std::optional<std::string> message = first;
  while (message) {
    if (!message->empty()) {
      const auto answer = ask(*message, print_now);
      print_now("\n");
      if (answer.ok()) {
        print_closing_line(prompt_tokens_, *answer);
      } else if (!terminal) {
        return answer.error();
      } else {
        std::fprintf(stderr, "millrace: %s\n", answer.error().message.c_str());
      }
    }
    if (terminal) print_now("> ");
    message = read_line();
  }
  return Ok{};
}

}  // namespace millrace::cli
