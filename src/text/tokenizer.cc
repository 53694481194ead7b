#include "text/tokenizer.h"

#include <cstring>

#include "text/ffi.h"

namespace millrace {

void Tokenizer::Free::operator()(ffi::Tokenizer* handle) const {
  ffi::millrace_tokenizer_free(handle);
}

Result<Tokenizer> Tokenizer::from_json(std::string_view tokenizer_json) {
  ffi::Bytes error;
  ffi::Tokenizer* handle = nullptr;
  if (ffi::millrace_tokenizer_new(tokenizer_json.data(), tokenizer_json.size(), &handle, error.out()) != 0) {
    return error.error();
  }
  return Tokenizer(handle);
}

Result<std::vector<std::int32_t>> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  ffi::Bytes out;
  if (ffi::millrace_tokenizer_encode(handle_.get(), text.data(), text.size(), add_special_tokens, out.out()) != 0) {
    return out.error();
  }
  std::vector<std::int32_t> ids(out.span().size() / sizeof(std::int32_t));
  if (!ids.empty()) std::memcpy(ids.data(), out.span().data(), ids.size() * sizeof(std::int32_t));
  return ids;
}

Result<std::string> Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special_tokens) const {
  ffi::Bytes out;
  if (ffi::millrace_tokenizer_decode(handle_.get(), ids.data(), ids.size(), skip_special_tokens, out.out()) != 0) {
    return out.error();
  }
  return out.string();
}

std::optional<std::string> Tokenizer::id_to_token(std::int32_t id) const {
  ffi::Bytes out;
  if (ffi::millrace_tokenizer_id_to_token(handle_.get(), id, out.out()) != 0) return std::nullopt;
  return out.string();
}

std::optional<std::int32_t> Tokenizer::token_to_id(std::string_view token) const {
  const std::int32_t id = ffi::millrace_tokenizer_token_to_id(handle_.get(), token.data(), token.size());
  return id < 0 ? std::nullopt : std::optional(id);
}

std::int64_t Tokenizer::vocab_size() const {
  return ffi::millrace_tokenizer_vocab_size(handle_.get());
}

}  // namespace millrace
