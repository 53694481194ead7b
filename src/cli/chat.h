// A conversation in the terminal: messages with history through the model's chat template.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/generate.h"
#include "core/result.h"
#include "engine/engine_core.h"
#include "runtime/load_model.h"

namespace millrace::cli {

class Conversation {
 public:
  /// `base`: everything of a request but its prompt. Error: the model has no tokenizer or no chat template.
  static Result<Conversation> open(const LoadedModel& model, EngineCore& engine, Request base,
                                   const std::string& system);

  /// Sends one message and keeps it and the answer (also a stopped one) in the history. `on_text` gets the answer's
  /// text as it comes. A message that fails is not kept.
  Result<Generated> ask(const std::string& message, const std::function<void(const std::string&)>& on_text);

  /// Reads messages from standard input until its end and prints the answers. `first`: a message to begin with, or
  /// empty.
  Status talk(const std::string& first);

  /// Tokens of the last prompt, history included.
  [[nodiscard]] std::size_t prompt_tokens() const { return prompt_tokens_; }

 private:
  Conversation(const LoadedModel& model, EngineCore& engine, Request base)
      : model_(&model), engine_(&engine), base_(std::move(base)) {}

  const LoadedModel* model_;
  EngineCore* engine_;
  Request base_;
  nlohmann::ordered_json messages_ = nlohmann::ordered_json::array();
  std::size_t prompt_tokens_ = 0;
};

}  // namespace millrace::cli
