// The C ABI of the crate in crate/ (see its lib.rs for the rules), and the few lines that turn it into C++. Internal to
// this room: only its .cc files include this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <ctime>
#include <span>
#include <string>
#include <string_view>

#include "core/result.h"

namespace millrace::ffi {

struct Tokenizer;
struct Detokenizer;
struct Template;

extern "C" {

struct MillraceBytes {  // allocated by Rust
  std::uint8_t* data;
  std::size_t size;
  std::size_t capacity;
};
void millrace_bytes_free(MillraceBytes bytes);

// int results: 0 done; 1 failed, and the bytes are the reason.
int millrace_tokenizer_new(const char* json, std::size_t size, Tokenizer** handle, MillraceBytes* error);
void millrace_tokenizer_free(Tokenizer* handle);
int millrace_tokenizer_encode(const Tokenizer* handle, const char* text, std::size_t size, bool add_special_tokens,
                              MillraceBytes* out);  // int32 ids
int millrace_tokenizer_decode(const Tokenizer* handle, const std::int32_t* ids, std::size_t count,
                              bool skip_special_tokens, MillraceBytes* out);
int millrace_tokenizer_id_to_token(const Tokenizer* handle, std::int32_t id, MillraceBytes* out);  // 1: no such id
std::int32_t millrace_tokenizer_token_to_id(const Tokenizer* handle, const char* token, std::size_t size);  // or -1
std::int64_t millrace_tokenizer_vocab_size(const Tokenizer* handle);

Detokenizer* millrace_detokenizer_new(const Tokenizer* tokenizer);  // keeps the tokenizer alive
void millrace_detokenizer_free(Detokenizer* handle);
int millrace_detokenizer_push(Detokenizer* handle, std::int32_t id, MillraceBytes* out);
int millrace_detokenizer_finish(Detokenizer* handle, MillraceBytes* out);

int millrace_template_new(const char* text, std::size_t text_size, const char* globals, std::size_t globals_size,
                          Template** handle, MillraceBytes* error);
void millrace_template_free(Template* handle);
int millrace_template_render(const Template* handle, const char* context, std::size_t context_size, const std::tm* now,
                             std::int32_t microsecond, MillraceBytes* out);

}  // extern "C"

/// Bytes that Rust allocated, until the end of the scope.
class Bytes {
 public:
  Bytes() = default;
  ~Bytes() { millrace_bytes_free(bytes_); }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;

  MillraceBytes* out() { return &bytes_; }
  [[nodiscard]] std::span<const std::uint8_t> span() const { return {bytes_.data, bytes_.size}; }
  [[nodiscard]] std::string string() const { return {reinterpret_cast<const char*>(bytes_.data), bytes_.size}; }
  [[nodiscard]] Error error() const { return Error{string()}; }

 private:
  MillraceBytes bytes_{nullptr, 0, 0};
};

}  // namespace millrace::ffi
