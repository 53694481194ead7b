#include "server/api_token_text.h"

#include <fmt/format.h>

#include <iterator>
#include <utility>

#include "server/api_json.h"

namespace millrace {

TokenText::Piece TokenText::of(std::int32_t token) const {
  if (tokenizer_ == nullptr) return {};
  const auto decoded = [&](bool skip_special) {
    const std::int32_t ids[] = {token};
    auto text = tokenizer_->decode(ids, skip_special);
    return text.ok() ? std::move(text).value() : std::string();
  };
  std::string bytes = vocabulary_ != nullptr ? vocabulary_->token_bytes(token) : decoded(true);
  if (!bytes.empty()) return {std::move(bytes), false};
  return {tokenizer_->id_to_token(token).value_or(""), true};
}

std::string shown_token(const std::string& bytes, const char* prefix) {
  if (is_utf8(bytes)) return bytes;
  std::string shown = prefix;
  for (const char byte : bytes) {
    fmt::format_to(std::back_inserter(shown), "\\x{:02x}", static_cast<unsigned char>(byte));
  }
  return shown;
}

}  // namespace millrace
