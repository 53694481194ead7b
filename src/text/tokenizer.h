// Tokenizer: text to token ids and back, as the published tokenizer.json of a model says.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace millrace {

namespace ffi {
struct Tokenizer;
}

/// Movable, not copyable. Const methods may be called from several threads at once.
class Tokenizer {
 public:
  /// `tokenizer_json`: the text of a tokenizer.json. Its truncation and padding are dropped, as transformers drops
  /// them. Error: one line that says what is wrong with the file.
  static Result<Tokenizer> from_json(std::string_view tokenizer_json);

  /// Token ids of `text`. `add_special_tokens`: with what the file's post-processor adds (a beginning-of-sequence
  /// token, mostly); special tokens that are written out in `text` are recognised either way. Error: `text` is not
  /// UTF-8.
  [[nodiscard]] Result<std::vector<std::int32_t>> encode(std::string_view text, bool add_special_tokens) const;

  /// Text of `ids`. Ids that the tokenizer does not have are passed over. Bytes that are not UTF-8 become U+FFFD.
  [[nodiscard]] Result<std::string> decode(std::span<const std::int32_t> ids, bool skip_special_tokens) const;

  /// The token as the vocabulary spells it ("Ġthe", "▁the", "<0x0A>").
  [[nodiscard]] std::optional<std::string> id_to_token(std::int32_t id) const;
  [[nodiscard]] std::optional<std::int32_t> token_to_id(std::string_view token) const;

  /// Number of tokens, added ones included.
  [[nodiscard]] std::int64_t vocab_size() const;

 private:
  friend class Detokenizer;
  friend class GrammarVocabulary;
  struct Free {
    void operator()(ffi::Tokenizer* handle) const;
  };

  explicit Tokenizer(ffi::Tokenizer* handle) : handle_(handle) {}

  std::unique_ptr<ffi::Tokenizer, Free> handle_;
};

}  // namespace millrace
