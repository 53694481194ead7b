// The pre-tokenizers that GGUF files name (tokenizer.ggml.pre). Internal to this room.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace millrace {

struct GgufPreTokenizer {
  /// Regular expressions (Oniguruma's syntax), applied one after the other: matches of each become pieces of their own,
  /// and later ones split the pieces further.
  std::span<const std::string_view> splits;
  bool ignore_merges = false;  // a piece that is a token is that token, whatever the merges say
  bool add_bos = false;        // where the file does not say
};

/// Null: not known.
const GgufPreTokenizer* find_gguf_pre_tokenizer(std::string_view name);

/// All known names, for an error message.
std::string gguf_pre_tokenizer_names();

}  // namespace millrace
