// The text of an answer, token by token: detokenised, and searched for stop strings.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/stop_strings.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace millrace {

/// A pure function of the tokens, so whoever has these has the same text. One thread at a time; movable.
class AnswerText {
 public:
  /// Of an answer without text: nothing comes out.
  AnswerText() = default;
  /// `tokenizer` null: the text of a token is its id, and a space, and there are no stop strings. `special`: the text
  /// of special tokens is kept.
  AnswerText(const Tokenizer* tokenizer, bool special, std::vector<std::string> stops);

  /// What has become final with this token; often empty.
  std::string push(std::int32_t token);
  /// What was held back, at the end.
  std::string finish();

  /// A stop string is complete: which, is in found().
  [[nodiscard]] bool stopped() const { return stops_.stopped(); }
  [[nodiscard]] const std::string& found() const { return stops_.found(); }

 private:
  bool ids_ = false;
  std::optional<Detokenizer> detokenizer_;
  StopStrings stops_{{}};
};

}  // namespace millrace
