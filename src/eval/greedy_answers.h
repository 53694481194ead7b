// What a model answers to prompts, by greedy decoding, and whether that is what was asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "runtime/model_runner.h"
#include "text/tokenizer.h"

namespace millrace {

struct GenerationQuestion;

/// (index of the question, text of the answer), in the order in which answers end. An error ends the work.
using TakeAnswer = std::function<Status(std::size_t, const std::string&)>;

/// Greedy answers, many at once; a stop id, a stop string or the most new tokens end one.
/// Errors: a prompt that the model cannot run; what `take` returns.
Status generate_answers(ModelRunner& runner, const Tokenizer& tokenizer,
                        std::span<const GenerationQuestion* const> questions, const TakeAnswer& take);

/// Error: an answer of the most new tokens does not fit behind the prompt in a sequence of `longest` tokens, so that
/// what comes out would depend on that; with the figures.
Status check_room(const GenerationQuestion& question, std::int64_t longest);

struct AnswerMatch {
  bool exact = false;      // the text is one of the accepted answers
  bool contained = false;  // the text contains one
};

/// White space around the text and the answers does not count.
AnswerMatch match_answer(std::string_view text, std::span<const std::string> answers);

/// Without the white space (of ASCII) at both ends.
std::string_view trimmed(std::string_view text);

}  // namespace millrace
