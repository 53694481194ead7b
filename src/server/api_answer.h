// AnswerBuilder: from the engine's token events to what a client gets: server-sent events, or one JSON document.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/request.h"
#include "server/api_error.h"
#include "server/api_model.h"

namespace millrace {

enum class Endpoint : std::uint8_t { chat, completion, embedding };

/// Who finds the tool calls in an answer.
enum class ToolMode : std::uint8_t {
  none,      // nobody: text is content
  parse,     // the parser of the model's format: the model decides whether it calls
  named,     // the answer is, by its grammar, the arguments of the tool `forced_tool`
  required,  // the answer is, by its grammar, a JSON list of {"name","arguments"}
};

/// How an answer is to be told. Made by parse_chat and the others.
struct AnswerSpec {
  struct Prompt {
    std::int64_t tokens = 0;
    std::string text;  // of a chat the rendered prompt; with `echo` the text to repeat
  };

  Endpoint endpoint = Endpoint::chat;
  std::string model;            // as the answer names it
  std::vector<Prompt> prompts;  // one for each engine request
  std::int32_t n = 1;           // choices told of each request
  std::int32_t choices = 1;     // choices generated of each request; more than n: the best n are told (best_of)
  bool stream = false;
  bool include_usage = false;          // stream: a last chunk with the usage
  bool continuous_usage = false;       // stream: usage so far in each chunk
  std::int32_t logprobs = -1;          // -1: none are told; k >= 0: with the k most likely
  bool special_text = false;           // Request::special_text
  std::vector<std::int32_t> stop_ids;  // tokens that ended the answer without being of its text

  // chat
  bool parse = false;  // the text goes through AnswerParser (reasoning, tool calls)
  ToolMode tools = ToolMode::none;
  std::string forced_tool;          // of ToolMode::named
  std::string tools_json;           // of ToolMode::parse: the body's "tools"
  bool parallel_tool_calls = true;  // false: calls after the first are dropped

  // completion
  bool echo = false;

  // embedding
  bool base64 = false;
  bool normalize = true;
};

struct Usage {
  std::int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  std::optional<ServiceReport> service = {};  // of all requests together, with the node of the last; none: no cluster
};

/// One for each HTTP request. One thread at a time; cheap enough to be called right in the engine's sink.
class AnswerBuilder {
 public:
  /// `model` must outlive the builder.
  AnswerBuilder(const ServedModel& model, AnswerSpec spec);
  ~AnswerBuilder();
  AnswerBuilder(AnswerBuilder&&) noexcept;
  AnswerBuilder& operator=(AnswerBuilder&&) noexcept;

  /// Takes the next event of engine request number `request` (its place in ApiCall::requests). When streaming, appends
  /// to `out` the complete server-sent events that are due ("data: {...}\n\n"; none, one or several), in the end with
  /// "data: [DONE]\n\n"; a failure becomes an event with an "error". Otherwise leaves `out` alone.
  void on(std::size_t request, const TokenEvent& event, std::string& out);

  /// Nothing more is to come: all requests have had their last event, or one has failed.
  [[nodiscard]] bool done() const;
  /// The failure, when one of the requests ended with FinishReason::error or cancelled. Streaming has told it already;
  /// else it is the answer, and the other requests are to be cancelled.
  [[nodiscard]] const std::optional<ApiError>& error() const;
  /// The body of the answer, once; not streaming, done() and no error().
  [[nodiscard]] std::string response();
  /// So far; complete when done().
  [[nodiscard]] Usage usage() const;
  /// "chatcmpl-...", as the answer carries it.
  [[nodiscard]] const std::string& id() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace millrace
