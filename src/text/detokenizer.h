// Detokenizer: the text of a generation, token by token.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace millrace {

namespace ffi {
struct Detokenizer;
}

/// What push() and finish() return, put together, is exactly what Tokenizer::decode(ids, skip_special_tokens) gives for
/// all ids at once. Each piece is valid UTF-8: half a character is held back until its other half comes. So
/// is whatever a later token could still change: a row of byte tokens ("<0xE2>") until it ends, spaces that a decoder
/// may strip. The cost of a token does not grow with the text. One thread at a time; movable.
class Detokenizer {
 public:
  /// Shares the tokenizer: it need not outlive this.
  explicit Detokenizer(const Tokenizer& tokenizer, bool skip_special_tokens = true);

  /// The text that has become final with this token; often empty. Unknown tokens have none, and special ones only
  /// where they are not skipped.
  std::string push(std::int32_t token);

  /// What was held back, at the end. U+FFFD for bytes that never became a character.
  std::string finish();

  /// The texts of the tokens that are skipped: the added tokens that the tokenizer's file flags as special.
  static std::vector<std::string> special_tokens(const Tokenizer& tokenizer);

 private:
  struct Free {
    void operator()(ffi::Detokenizer* handle) const;
  };
  std::unique_ptr<ffi::Detokenizer, Free> handle_;
};

}  // namespace millrace
