// Grammars for constrained decoding: what an answer may look like, and which tokens may come next (llguidance).
//
//   GrammarVocabulary (once a model) ─► Grammar (once a request's schema) ─► GrammarMatcher (one a sequence)
//   each step: mask() ─► sample among the allowed ─► accept(token), until an end-of-sequence token is drawn
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/result.h"
#include "text/tokenizer.h"

namespace millrace {

namespace ffi {
struct GrammarVocabulary;
struct Grammar;
struct GrammarMatcher;
}  // namespace ffi

/// The tokens of a tokenizer as bytes, in the tree that grammars walk: made once a model, shared by its grammars.
/// Movable; const methods may be called from several threads at once.
class GrammarVocabulary {
 public:
  /// `eos_ids`: the tokens that end an answer (at least one; out of 0 ≤ id < vocab). `vocab`: rows of logits; masks
  /// have as many bits, and ids that the tokenizer does not have are never allowed. Other special tokens are allowed
  /// only where a Lark grammar names them (`<|user|>`). Error: one line that says which argument is wrong, or that the
  /// tokenizer's decoder is of a kind whose tokens have no bytes of their own (WordPiece, CTC).
  static Result<GrammarVocabulary> create(const Tokenizer& tokenizer, std::span<const std::int32_t> eos_ids,
                                          std::int64_t vocab);

  /// What a token writes within a text, byte for byte; empty for one that writes nothing that a grammar could allow
  /// (special tokens, ends, ids that the tokenizer does not have).
  [[nodiscard]] std::string token_bytes(std::int32_t id) const;

 private:
  friend class Grammar;
  struct Free {
    void operator()(ffi::GrammarVocabulary* handle) const;
  };

  GrammarVocabulary(ffi::GrammarVocabulary* handle, std::size_t mask_words)
      : handle_(handle), mask_words_(mask_words) {}

  std::unique_ptr<ffi::GrammarVocabulary, Free> handle_;
  std::size_t mask_words_;
};

/// JSON is written in one line, with or without spaces, or in lines that are indented; white space comes in single
/// pieces of bounded length, so that a model cannot write it for ever. Lark: llguidance's dialect, `%json` included.
/// Regular expressions are those of Rust's regex crate, matched whole. What a schema says that llguidance cannot keep
/// (`not`, `if`, a oneOf whose alternatives overlap) is an error, not passed over.
struct GrammarSpec {
  enum class Kind : std::uint8_t { json_object, json_schema, regex, lark, choice };
  Kind kind = Kind::json_object;
  std::string text;                  // the schema (JSON text), the regular expression, the grammar
  std::vector<std::string> choices;  // of `choice`
};

/// One sequence's place in a grammar. The answer is what Detokenizer writes for its tokens, without the space that some
/// decoders drop at the beginning. One thread at a time; movable. Keeps alive what it needs of grammar and
/// vocabulary.
class GrammarMatcher {
 public:
  /// The tokens that may come next: bit i % 32 of word i / 32 says whether token i may. `allowed` has
  /// ⌈vocab / 32⌉ words, all of which are written. The end-of-sequence tokens are among them exactly where the answer
  /// may end; there is always at least one bit. Error: the grammar became too complex at this place for the limits on
  /// work, or an earlier call failed; the answer cannot go on under this grammar.
  [[nodiscard]] Status mask(std::span<std::uint32_t> allowed);

  /// Goes on by a token. Error: the token was not allowed (the matcher stays where it was), or as of mask().
  [[nodiscard]] Status accept(std::int32_t token);

  /// Nothing but the end may come: only end-of-sequence tokens are allowed, or one was accepted.
  [[nodiscard]] bool finished() const;

  /// The answer may end here.
  [[nodiscard]] bool accepting() const;

 private:
  friend class Grammar;
  struct Free {
    void operator()(ffi::GrammarMatcher* handle) const;
  };

  GrammarMatcher(ffi::GrammarMatcher* handle, std::size_t mask_words) : handle_(handle), mask_words_(mask_words) {}

  std::unique_ptr<ffi::GrammarMatcher, Free> handle_;
  std::size_t mask_words_;
};

/// Compiled; immutable, may be used by several threads at once. Keeps alive what it needs of the vocabulary.
class Grammar {
 public:
  /// Error: one line that says what is wrong in the schema, expression or grammar, or that it is too large or too
  /// complex (all of it is a client's text, so time and memory are bounded).
  static Result<Grammar> compile(const GrammarVocabulary& vocabulary, const GrammarSpec& spec);

  /// At the beginning of an answer.
  [[nodiscard]] GrammarMatcher start() const;

  /// What it was compiled from: for those who have an answer made elsewhere.
  [[nodiscard]] const GrammarSpec& spec() const { return spec_; }

 private:
  struct Free {
    void operator()(ffi::Grammar* handle) const;
  };

  Grammar(ffi::Grammar* handle, std::size_t mask_words, GrammarSpec spec)
      : handle_(handle), mask_words_(mask_words), spec_(std::move(spec)) {}

  std::unique_ptr<ffi::Grammar, Free> handle_;
  std::size_t mask_words_;
  GrammarSpec spec_;
};

}  // namespace millrace
