// The fields that chat and completions have in common: sampling, ends, what is told and how.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "engine/request.h"
#include "server/api_answer.h"
#include "server/api_error.h"
#include "server/api_json.h"
#include "server/api_model.h"

namespace millrace {

/// Answers of one body: prompts times choices.
constexpr std::int64_t kMaxAnswers = 4096;
constexpr std::int64_t kMaxChoices = 128;
constexpr std::size_t kMaxPrompts = 2048;
constexpr std::size_t kMaxStops = 16;
constexpr std::size_t kMaxStopBytes = 1024;
constexpr std::size_t kMaxBiases = 1024;
constexpr std::int64_t kMaxTopLogprobs = 20;

struct Generation {
  Request request;  // all but the prompt, grammar and max_new_tokens
  AnswerSpec answer;
  bool keep_special = false;  // skip_special_tokens: false
  bool names_seed = false;
  std::string user;
};

/// The model that a body names, or the served one where it names none. Error: 404, or 400 for a wrong type.
ApiResult<std::string> read_model(Fields& fields, const ServedModel& model);

/// Wrong fields are kept in fields.error.
Generation read_generation(Fields& fields, const ServedModel& model);

/// Sets request.max_new_tokens: what was asked for, else `fallback`, at most what fits. `param`: the field that holds
/// the prompt. Errors: the prompt alone, or with `asked` tokens, is longer than a sequence may be.
ApiStatus fit(Request& request, std::optional<std::int64_t> asked, std::int64_t fallback, const ServedModel& model,
              const std::string& param);

}  // namespace millrace
