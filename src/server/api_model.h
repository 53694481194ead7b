// ServedModel: what the API has to know of the model that it speaks for.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/api_error.h"
#include "text/answer_format.h"
#include "text/chat_template.h"
#include "text/grammar.h"
#include "text/tokenizer.h"

namespace millrace {

/// Sampling parameters of a request that names none.
struct SamplingDefaults {
  float temperature = 1.0f, top_p = 1.0f, min_p = 0.0f, repetition_penalty = 1.0f;
  std::int32_t top_k = 0;

  /// What a checkpoint's generation_config.json recommends, OpenAI's defaults for the rest. Values that are no numbers
  /// or out of range are passed over.
  static SamplingDefaults from(const nlohmann::json& generation_config);
};

/// Filled once at start, then read by any thread.
struct ServedModel {
  std::vector<std::string> ids;  // the name that answers carry, then its aliases; at least one
  std::int64_t created = 0;      // Unix time in seconds
  std::string fingerprint;       // system_fingerprint_of(numeric class)

  const Tokenizer* tokenizer = nullptr;         // may be null: prompts are ids, answers without text
  bool pins_system = false;                     // requests say which tokens of a prompt are the system's (KvRetention)
  const ChatTemplate* chat_template = nullptr;  // may be null: no chat
  std::string template_source;                  // of chat_template; Jinja
  AnswerFormat format = AnswerFormat::detect({}, nullptr);      // detect(template_source, tokenizer)
  std::shared_ptr<const GrammarVocabulary> grammar_vocabulary;  // may be null: no constrained answers

  std::vector<std::int32_t> eos_ids;
  std::int64_t vocab = 0;                         // rows of the model's head
  std::int64_t hidden = 0;                        // size of an embedding
  std::int64_t max_sequence_tokens = 0;           // prompt and answer together
  std::optional<std::int64_t> max_prompt_tokens;  // where a prompt may be no longer than that
  SamplingDefaults defaults;

  [[nodiscard]] const std::string& name() const { return ids.front(); }
  [[nodiscard]] bool answers_to(std::string_view id) const;
};

/// "fp_" and a hash of the numeric class: equal where equal requests with equal seeds give equal answers.
std::string system_fingerprint_of(std::string_view numeric_class);

/// Body of GET /v1/models.
std::string models_json(const ServedModel& model);
/// Body of GET /v1/models/{id}. Error: 404.
ApiResult<std::string> model_json(const ServedModel& model, std::string_view id);

}  // namespace millrace
