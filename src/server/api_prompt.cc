#include "server/api_prompt.h"

#include <fmt/format.h>

#include <utility>

#include "server/api_generation.h"

namespace millrace {

namespace {

constexpr std::string_view kExpected = "a string, or an array of strings, of token ids, or of arrays of token ids";

ApiResult<Prompt> read_prompt(const Json& value, const std::string& param, bool add_special_tokens, bool want_text,
                              const ServedModel& model) {
  Prompt prompt;
  if (value.is_string()) {
    prompt.text = value.get<std::string>();
    MILLRACE_TRY(prompt.ids, encode(prompt.text, add_special_tokens, param, model));
  } else {
    MILLRACE_TRY(prompt.ids, read_ids(value, param, model));
    if (want_text && model.tokenizer != nullptr) {
      auto text = model.tokenizer->decode(prompt.ids, true);
      if (!text.ok()) return invalid_value(param, text.error().message);
      prompt.text = std::move(text).value();
    }
  }
  if (prompt.ids.empty()) return invalid_value(param, "an empty prompt, expected at least one token");
  return prompt;
}

}  // namespace

ApiResult<std::vector<Prompt>> read_prompts(const Json& value, const std::string& param, bool add_special_tokens,
                                            bool want_text, const ServedModel& model) {
  std::vector<Prompt> prompts;
  if (!value.is_string() && !value.is_array()) return invalid_type(param, kExpected, value);
  if (value.is_array() && value.empty()) return invalid_value(param, "an empty list, expected at least one prompt");
  if (value.is_string() || value[0].is_number()) {
    MILLRACE_TRY(Prompt prompt, read_prompt(value, param, add_special_tokens, want_text, model));
    prompts.push_back(std::move(prompt));
    return prompts;
  }
  if (value.size() > kMaxPrompts) {
    return invalid_value(param, fmt::format("{} prompts, at most {} are allowed", value.size(), kMaxPrompts));
  }
  const bool texts = value[0].is_string();
  for (std::size_t i = 0; i < value.size(); ++i) {
    const std::string where = fmt::format("{}[{}]", param, i);
    if (texts ? !value[i].is_string() : !value[i].is_array()) {
      return invalid_type(where, i == 0 ? kExpected : texts ? "a string" : "an array of token ids", value[i]);
    }
    MILLRACE_TRY(Prompt prompt, read_prompt(value[i], where, add_special_tokens, want_text, model));
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

ApiResult<std::vector<std::int32_t>> encode(std::string_view text, bool add_special_tokens, const std::string& param,
                                            const ServedModel& model) {
  if (model.tokenizer == nullptr) return invalid_value(param, "this model has no tokenizer, expected token ids");
  auto ids = model.tokenizer->encode(text, add_special_tokens);
  if (!ids.ok()) return invalid_value(param, ids.error().message);
  return std::move(ids).value();
}

ApiResult<std::vector<std::int32_t>> read_ids(const Json& list, const std::string& param, const ServedModel& model) {
  std::vector<std::int32_t> ids;
  ids.reserve(list.size());
  for (std::size_t i = 0; i < list.size(); ++i) {
    const Json& id = list[i];
    if (!id.is_number_integer()) return invalid_type(fmt::format("{}[{}]", param, i), "a token id", id);
    // An unsigned number beyond 63 bits comes out negative.
    const auto value = id.get<std::int64_t>();
    if (value < 0 || value >= model.vocab) {
      return invalid_value(fmt::format("{}[{}]", param, i),
                           fmt::format("{} is no token id, expected 0 to {}", id.dump(), model.vocab - 1));
    }
    ids.push_back(static_cast<std::int32_t>(value));
  }
  return ids;
}

}  // namespace millrace
