#include "server/api_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <utility>

#include "server/api_format.h"
#include "server/api_generation.h"
#include "server/api_json.h"
#include "server/api_messages.h"
#include "server/api_prompt.h"
#include "server/api_tools.h"

namespace millrace {

namespace {

constexpr std::int64_t kManyTokens = std::numeric_limits<std::int32_t>::max();

/// Fields that change what is asked for and that nobody here understands: better refused than ignored.
void refuse_unsupported(Fields& fields, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    const Json* value = fields.find(key);
    if (value == nullptr || (value->is_string() && value->get_ref<const std::string&>().empty())) continue;
    ApiError error = invalid_value(key, "not supported by this server");
    error.code = "unsupported_parameter";
    fields.refuse(std::move(error));
  }
}

std::optional<std::int64_t> read_limit(Fields& fields, const char* key, std::int64_t low) {
  if (!fields.has(key)) return std::nullopt;
  return fields.integer(key, low, low, kManyTokens);
}

void read_chat_logprobs(Fields& fields, Generation& generation) {
  const bool wanted = fields.boolean("logprobs", false);
  const auto most = static_cast<std::int32_t>(fields.integer("top_logprobs", 0, 0, kMaxTopLogprobs));
  if (wanted) {
    generation.request.logprobs = generation.answer.logprobs = most;
  } else if (most > 0) {
    fields.refuse(invalid_value("top_logprobs", "only allowed when 'logprobs' is true"));
  }
}

/// Who reads the answer, and which special tokens have text in it.
void set_reader(Generation& generation, const Tools& tools, bool constrained, const ServedModel& model) {
  AnswerSpec& answer = generation.answer;
  answer.tools = tools.mode;
  answer.forced_tool = tools.forced;
  answer.parallel_tool_calls = tools.parallel;
  if (tools.mode == ToolMode::parse) answer.tools_json = tools.list.dump();
  // A grammar holds from the first token on: there is neither reasoning nor a call in the model's own format.
  answer.parse = !constrained && (tools.mode == ToolMode::parse || model.format.has_reasoning());
  if (constrained && tools.mode == ToolMode::parse) answer.tools = ToolMode::none;
  answer.special_text = generation.keep_special || (answer.parse && model.format.special_text());
  generation.request.special_text = answer.special_text;
}

struct CompletionFields {
  std::optional<std::int64_t> max_tokens;
  bool add_special_tokens = true;
};

CompletionFields read_completion(Fields& fields, Generation& generation) {
  Request& request = generation.request;
  AnswerSpec& answer = generation.answer;
  answer.endpoint = Endpoint::completion;
  answer.echo = fields.boolean("echo", false);
  CompletionFields read;
  read.max_tokens = read_limit(fields, "max_tokens", 0);
  read.add_special_tokens = fields.boolean("add_special_tokens", true);
  if (fields.has("logprobs")) {
    request.logprobs = answer.logprobs = static_cast<std::int32_t>(fields.integer("logprobs", 0, 0, kMaxTopLogprobs));
    request.prompt_logprobs = answer.echo;
  }
  if (read.max_tokens == 0 && answer.echo) {  // the prompt is told token by token
    request.prompt_logprobs = true;
    request.logprobs = std::max(request.logprobs, 0);
  }
  answer.choices = static_cast<std::int32_t>(fields.integer("best_of", answer.n, 1, kMaxChoices));
  request.choices = answer.choices;
  if (answer.choices < answer.n) {
    fields.refuse(invalid_value("best_of", fmt::format("{} is less than 'n', which is {}", answer.choices, answer.n)));
  } else if (answer.choices > answer.n) {
    if (answer.stream) fields.refuse(invalid_value("best_of", "a stream cannot tell the best before the end"));
    request.logprobs = std::max(request.logprobs, 0);
  }
  answer.special_text = request.special_text = generation.keep_special;
  refuse_unsupported(fields, {"suffix"});
  return read;
}

ApiStatus compile_into(Request& request, const std::optional<FormatSpec>& format, const ServedModel& model) {
  if (!format) return Ok{};
  MILLRACE_TRY(request.grammar, compile_format(*format, model));
  return Ok{};
}

}  // namespace

ApiResult<ApiCall> parse_chat(std::string_view body, const ServedModel& model) {
  MILLRACE_TRY(const Json json, parse_body(body));
  Fields fields(json);
  MILLRACE_TRY(std::string name, read_model(fields, model));
  Generation generation = read_generation(fields, model);
  generation.answer.endpoint = Endpoint::chat;
  generation.answer.model = std::move(name);
  read_chat_logprobs(fields, generation);
  const std::optional<std::int64_t> old_limit = read_limit(fields, "max_tokens", 1);
  const std::optional<std::int64_t> limit = read_limit(fields, "max_completion_tokens", 1);
  const bool add_special_tokens = fields.boolean("add_special_tokens", false);
  refuse_unsupported(fields, {"chat_template", "audio"});
  Tools tools = read_tools(fields, model);
  std::optional<FormatSpec> format = read_format(fields);
  if (tools.format) {
    if (format) fields.refuse(invalid_value(format->param, "not together with a forced tool call"));
    format = std::move(tools.format);
  }
  if (fields.error) return *fields.error;

  MILLRACE_TRY(ChatPrompt rendered, render_chat(fields, model, tools.list, !format));
  std::string prompt = std::move(rendered.text);
  Request& request = generation.request;
  MILLRACE_TRY(request.prompt, encode(prompt, add_special_tokens, "messages", model));
  if (rendered.system_bytes > 0) {
    const std::string system = prompt.substr(0, rendered.system_bytes);
    MILLRACE_TRY(const std::vector<std::int32_t> ids, encode(system, add_special_tokens, "messages", model));
    request.pinned_tokens = std::ranges::mismatch(ids, request.prompt).in1 - ids.begin();
  }
  if (request.prompt.empty()) return invalid_value("messages", "the chat template made no prompt of them");
  MILLRACE_CHECK_OK(fit(request, limit ? limit : old_limit, kManyTokens, model, "messages"));
  MILLRACE_CHECK_OK(compile_into(request, format, model));
  set_reader(generation, tools, format.has_value(), model);
  ApiCall call{.requests = {},
               .answer = std::move(generation.answer),
               .user = std::move(generation.user),
               .names_seed = generation.names_seed};
  call.answer.prompts.push_back(
      {.tokens = static_cast<std::int64_t>(request.prompt.size()), .text = std::move(prompt)});
  call.requests.push_back(std::move(request));
  return call;
}

ApiResult<ApiCall> parse_completion(std::string_view body, const ServedModel& model) {
  constexpr std::int64_t kDefaultTokens = 16;  // OpenAI's
  MILLRACE_TRY(const Json json, parse_body(body));
  Fields fields(json);
  MILLRACE_TRY(std::string name, read_model(fields, model));
  Generation generation = read_generation(fields, model);
  generation.answer.model = std::move(name);
  const CompletionFields read = read_completion(fields, generation);
  const std::optional<FormatSpec> format = read_format(fields);
  const Json* given = fields.find("prompt");
  if (given == nullptr) fields.refuse(missing("prompt"));
  if (fields.error) return *fields.error;

  AnswerSpec& answer = generation.answer;
  MILLRACE_TRY(std::vector<Prompt> prompts,
               read_prompts(*given, "prompt", read.add_special_tokens, answer.echo, model));
  if (static_cast<std::int64_t>(prompts.size()) * answer.choices > kMaxAnswers) {
    return invalid_value("n", fmt::format("{} prompts with {} answers each, at most {} answers are allowed",
                                          prompts.size(), answer.choices, kMaxAnswers));
  }
  MILLRACE_CHECK_OK(compile_into(generation.request, format, model));
  ApiCall call;
  for (Prompt& prompt : prompts) {
    Request request = generation.request;
    request.prompt = std::move(prompt.ids);
    MILLRACE_CHECK_OK(fit(request, read.max_tokens, kDefaultTokens, model, "prompt"));
    answer.prompts.push_back({.tokens = static_cast<std::int64_t>(request.prompt.size()),
                              .text = answer.echo ? std::move(prompt.text) : std::string()});
    call.requests.push_back(std::move(request));
  }
  call.answer = std::move(answer);
  call.user = std::move(generation.user);
  call.names_seed = generation.names_seed;
  return call;
}

ApiResult<ApiCall> parse_embeddings(std::string_view body, const ServedModel& model) {
  constexpr std::array<std::string_view, 2> kEncodings = {"float", "base64"};
  constexpr std::array<std::string_view, 2> kPoolings = {"mean", "last"};
  MILLRACE_TRY(const Json json, parse_body(body));
  Fields fields(json);
  MILLRACE_TRY(std::string name, read_model(fields, model));
  ApiCall call;
  call.answer.endpoint = Endpoint::embedding;
  call.answer.model = std::move(name);
  call.answer.base64 = fields.choice("encoding_format", "float", kEncodings) == "base64";
  call.answer.normalize = fields.boolean("normalize", true);
  call.user = fields.text("user", "");
  const Task task = fields.choice("pooling", "mean", kPoolings) == "mean" ? Task::embed_mean : Task::embed_last;
  const std::int64_t dimensions = fields.integer("dimensions", model.hidden, 1, kManyTokens);
  if (dimensions != model.hidden) {
    fields.refuse(invalid_value(
        "dimensions",
        fmt::format("embeddings of this model have {}, and cannot be shortened to {}", model.hidden, dimensions)));
  }
  const bool add_special_tokens = fields.boolean("add_special_tokens", true);
  Request base;
  base.task = task;
  base.priority = static_cast<std::int32_t>(fields.integer("priority", 0, -kManyTokens, kManyTokens));
  base.cache_salt = fields.text("cache_salt", "");
  const Json* input = fields.find("input");
  if (input == nullptr) fields.refuse(missing("input"));
  if (fields.error) return *fields.error;

  MILLRACE_TRY(std::vector<Prompt> prompts, read_prompts(*input, "input", add_special_tokens, false, model));
  for (Prompt& prompt : prompts) {
    Request request = base;
    request.prompt = std::move(prompt.ids);
    MILLRACE_CHECK_OK(fit(request, 0, 0, model, "input"));
    call.answer.prompts.push_back({.tokens = static_cast<std::int64_t>(request.prompt.size()), .text = {}});
    call.requests.push_back(std::move(request));
  }
  return call;
}

}  // namespace millrace
