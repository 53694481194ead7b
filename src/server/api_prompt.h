// Prompts that are given as text or as token ids, one or several.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "server/api_error.h"
#include "server/api_json.h"
#include "server/api_model.h"

namespace millrace {

struct Prompt {
  std::vector<std::int32_t> ids;  // at least one
  std::string text;               // as given; with `want_text` also of a prompt that was given as ids
};

/// `value`: of the field `param`; a string, a list of strings, a list of ids, or a list of such lists. Errors (400):
/// any other type, no prompt or an empty one, ids outside the vocabulary, text without a tokenizer, more prompts than
/// kMaxPrompts.
ApiResult<std::vector<Prompt>> read_prompts(const Json& value, const std::string& param, bool add_special_tokens,
                                            bool want_text, const ServedModel& model);

/// Token ids of `text`; may be none. Error (400): the model has no tokenizer.
ApiResult<std::vector<std::int32_t>> encode(std::string_view text, bool add_special_tokens, const std::string& param,
                                            const ServedModel& model);
/// A list of ids of the vocabulary; may be empty.
ApiResult<std::vector<std::int32_t>> read_ids(const Json& list, const std::string& param, const ServedModel& model);

}  // namespace millrace
