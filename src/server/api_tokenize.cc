#include <fmt/format.h>

#include <utility>

#include "server/api_generation.h"
#include "server/api_json.h"
#include "server/api_messages.h"
#include "server/api_prompt.h"
#include "server/api_request.h"

namespace millrace {

namespace {

/// The spellings of `ids` in the vocabulary.
std::string spellings(const std::vector<std::int32_t>& ids, const Tokenizer& tokenizer) {
  std::string list = "[";
  for (const std::int32_t id : ids) {
    if (list.size() > 1) list += ',';
    append_json_string(list, tokenizer.id_to_token(id).value_or(""));
  }
  return list += ']';
}

}  // namespace

ApiResult<std::string> answer_tokenize(std::string_view body, const ServedModel& model) {
  MILLRACE_TRY(const Json json, parse_body(body));
  Fields fields(json);
  MILLRACE_CHECK_OK(read_model(fields, model));
  const bool chat = fields.has("messages");
  const char* const param = chat ? "messages" : "prompt";
  std::string text = chat ? std::string() : fields.text("prompt", "");
  const bool add_special_tokens = fields.boolean("add_special_tokens", !chat);
  const bool want_spellings = fields.boolean("return_token_strs", false);
  if (!chat && !fields.has("prompt")) fields.refuse(missing("prompt"));
  const Json* tools = fields.array("tools");
  if (fields.error) return *fields.error;
  if (chat) {
    MILLRACE_TRY(ChatPrompt prompt,
                 render_chat(fields, model, tools == nullptr || tools->empty() ? Json() : *tools, true));
    text = std::move(prompt.text);
  }
  MILLRACE_TRY(const std::vector<std::int32_t> ids, encode(text, add_special_tokens, param, model));
  return fmt::format(R"({{"count":{},"max_model_len":{},"tokens":[{}],"token_strs":{}}})", ids.size(),
                     model.max_sequence_tokens, fmt::join(ids, ","),
                     want_spellings ? spellings(ids, *model.tokenizer) : "null");
}

ApiResult<std::string> answer_detokenize(std::string_view body, const ServedModel& model) {
  MILLRACE_TRY(const Json json, parse_body(body));
  Fields fields(json);
  MILLRACE_CHECK_OK(read_model(fields, model));
  const Json* tokens = fields.array("tokens");
  if (tokens == nullptr) fields.refuse(missing("tokens"));
  if (fields.error) return *fields.error;
  if (model.tokenizer == nullptr) return invalid_value("model", "it has no tokenizer, so its tokens have no text");
  MILLRACE_TRY(const std::vector<std::int32_t> ids, read_ids(*tokens, "tokens", model));
  auto text = model.tokenizer->decode(ids, false);
  if (!text.ok()) return invalid_value("tokens", text.error().message);
  return R"({"prompt":)" + json_string(*text) + "}";
}

}  // namespace millrace
