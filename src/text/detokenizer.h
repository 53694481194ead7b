// Detokenizer: the text of a generation, token by token.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "text/tokenizer.h"

namespace millrace {

namespace ffi {
struct Detokenizer;
}

/// What push() and finish() return, put together, is exactly what Tokenizer::decode(ids, skip_special_tokens = true)
/// gives for all ids at once. Each piece is valid UTF-8: half a character is held back until its other half comes. So
/// is whatever a later token could still change: a row of byte tokens ("<0xE2>") until it ends, spaces that a decoder
/// may strip. The cost of a token does not grow with the text. One thread at a time; movable.
class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer);  // shares the tokenizer: it need not outlive this

  /// The text that has become final with this token; often empty. Special and unknown tokens have none.
  std::string push(std::int32_t token);

  /// What was held back, at the end. U+FFFD for bytes that never became a character.
  std::string finish();

 private:
  struct Free {
    void operator()(ffi::Detokenizer* handle) const;
  };
  std::unique_ptr<ffi::Detokenizer, Free> handle_;
};

}  // namespace millrace
