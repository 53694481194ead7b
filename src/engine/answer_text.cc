#include "engine/answer_text.h"

#include <utility>

namespace millrace {

AnswerText::AnswerText(const Tokenizer* tokenizer, bool special, std::vector<std::string> stops)
    : ids_(tokenizer == nullptr) {
  if (tokenizer == nullptr) return;
  detokenizer_.emplace(*tokenizer, !special);
  stops_ = StopStrings(std::move(stops));
}

std::string AnswerText::push(std::int32_t token) {
  if (ids_) return std::to_string(token) + ' ';
  return detokenizer_ ? stops_.push(detokenizer_->push(token)) : std::string();
}

std::string AnswerText::finish() {
  if (!detokenizer_ || stopped()) return {};
  std::string text = stops_.push(detokenizer_->finish());
  return text + stops_.finish();
}

}  // namespace millrace
