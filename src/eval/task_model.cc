#include "eval/task_model.h"

#include <algorithm>

namespace millrace {

Result<std::vector<std::int32_t>> encode_text(const TaskModel& model, std::string_view text) {
  MILLRACE_TRY(std::vector<std::int32_t> ids, model.tokenizer->encode("", true));
  if (ids.size() != 1) {
    ids.clear();
    if (!model.eos_ids.empty()) ids.push_back(model.eos_ids.front());
  }
  MILLRACE_TRY(const std::vector<std::int32_t> more, model.tokenizer->encode(text, false));
  ids.insert(ids.end(), more.begin(), more.end());
  return ids;
}

Result<Continuation> make_continuation(const TaskModel& model, std::string_view context, std::string_view continuation,
                                       bool rendered) {
  const auto encode = [&](const std::string& text) {
    return rendered ? model.tokenizer->encode(text, false) : encode_text(model, text);
  };
  const std::string given(context);
  MILLRACE_TRY(const std::vector<std::int32_t> before, encode(given));
  MILLRACE_TRY(std::vector<std::int32_t> all, encode(given + std::string(continuation)));
  const auto parting = std::ranges::mismatch(before, all).in2;
  const auto common = static_cast<std::size_t>(parting - all.begin());
  Continuation made{.tokens = std::move(all), .context = std::max<std::size_t>(common, 1)};
  if (made.context >= made.tokens.size()) {
    return fail("\"{}\" has no token that could be predicted: it must have one behind its context", continuation);
  }
  MILLRACE_CHECK_OK(check_length(model, made.tokens.size()));
  return made;
}

Status check_length(const TaskModel& model, std::size_t tokens) {
  if (static_cast<std::int64_t>(tokens) > model.longest) {
    return fail(
        "{} tokens, but a sequence may have {} here (the model's context, or --max-model-len): leave it out or take a "
        "model with a longer context",
        tokens, model.longest);
  }
  return Ok{};
}

}  // namespace millrace
