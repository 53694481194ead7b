// TokenText: single tokens as bytes and as the strings that logprobs show.
#pragma once

#include <cstdint>
#include <string>

#include "text/grammar.h"
#include "text/tokenizer.h"

namespace millrace {

/// A token alone need not be a character ("<0xE2>", half of an emoji) and may begin with a space that a decoder strips
/// from the start of a text; here it is what it adds in the middle of one. Any thread.
class TokenText {
 public:
  /// Both may be null and must outlive this. Without a vocabulary tokens are decoded one by one, which is less exact;
  /// without a tokenizer they have no text.
  TokenText(const Tokenizer* tokenizer, const GrammarVocabulary* vocabulary)
      : tokenizer_(tokenizer), vocabulary_(vocabulary) {}

  struct Piece {
    std::string bytes;     // of a special token its name
    bool special = false;  // decoding without special tokens passes over it
  };
  [[nodiscard]] Piece of(std::int32_t token) const;

 private:
  const Tokenizer* tokenizer_;
  const GrammarVocabulary* vocabulary_;
};

/// `bytes` as OpenAI's logprobs write a token: the text where it is UTF-8, else `prefix` and each byte as "\xe2".
std::string shown_token(const std::string& bytes, const char* prefix);

}  // namespace millrace
