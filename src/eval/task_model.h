// What of a model its tasks' documents depend on, and how texts become tokens for them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "eval/continuation.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace millrace {

struct TaskModel {
  const Tokenizer* tokenizer = nullptr;
  const ChatTemplate* chat_template = nullptr;  // may be null
  std::vector<std::int32_t> eos_ids = {};
  std::int64_t longest = 0;  // tokens of a sequence
  std::int64_t vocab = 0;
};

/// Token ids of a text, behind what stands before a text: the token that the tokenizer puts there, if it is a single
/// one (a BOS), else the end-of-sequence token, which stands between texts. Where there is neither, the text alone.
Result<std::vector<std::int32_t>> encode_text(const TaskModel& model, std::string_view text);

/// `continuation` behind `context`, encoded as one text; what begins with the first token that the context alone does
/// not have is the continuation. A context that is empty is the start of the text. `rendered`: the context has all its
/// special tokens written out already. Errors: nothing is left that could be predicted; more tokens than the model's
/// context, with the figures.
Result<Continuation> make_continuation(const TaskModel& model, std::string_view context, std::string_view continuation,
                                       bool rendered = false);

/// Error: more tokens than a sequence may have, with the figures.
Status check_length(const TaskModel& model, std::size_t tokens);

}  // namespace millrace
