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
struct GrammarVocabulary;
struct Grammar;
struct GrammarMatcher;

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

// Keeps the tokenizer alive.
Detokenizer* millrace_detokenizer_new(const Tokenizer* tokenizer, bool skip_special_tokens);
void millrace_detokenizer_free(Detokenizer* handle);
int millrace_detokenizer_push(Detokenizer* handle, std::int32_t id, MillraceBytes* out);
int millrace_detokenizer_finish(Detokenizer* handle, MillraceBytes* out);
int millrace_detokenizer_special_tokens(const Tokenizer* tokenizer, MillraceBytes* out);  // each ends with a zero byte

int millrace_template_new(const char* text, std::size_t text_size, const char* globals, std::size_t globals_size,
                          Template** handle, MillraceBytes* error);
void millrace_template_free(Template* handle);
int millrace_template_render(const Template* handle, const char* context, std::size_t context_size, const std::tm* now,
                             std::int32_t microsecond, MillraceBytes* out);

struct MillraceText {  // a piece of the caller's text
  const char* data;
  std::size_t size;
};
int millrace_grammar_vocabulary_new(const Tokenizer* tokenizer, const std::int32_t* eos, std::size_t count,
                                    std::int64_t vocab, GrammarVocabulary** handle, MillraceBytes* error);
void millrace_grammar_vocabulary_free(GrammarVocabulary* handle);
int millrace_grammar_vocabulary_token(const GrammarVocabulary* handle, std::int32_t id, MillraceBytes* out);
// `kind` numbers GrammarSpec::Kind; `texts`: one of them, or each choice.
int millrace_grammar_new(const GrammarVocabulary* vocabulary, std::int32_t kind, const MillraceText* texts,
                         std::size_t count, Grammar** handle, MillraceBytes* error);
void millrace_grammar_free(Grammar* handle);
GrammarMatcher* millrace_grammar_matcher_new(const Grammar* grammar);
void millrace_grammar_matcher_free(GrammarMatcher* handle);
int millrace_grammar_matcher_mask(GrammarMatcher* handle, std::uint32_t* words, std::size_t count,
                                  MillraceBytes* error);
int millrace_grammar_matcher_accept(GrammarMatcher* handle, std::int32_t token, MillraceBytes* error);
bool millrace_grammar_matcher_finished(const GrammarMatcher* handle);
bool millrace_grammar_matcher_accepting(const GrammarMatcher* handle);

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
