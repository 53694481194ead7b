#include "text/grammar.h"

#include "core/check.h"
#include "text/ffi.h"

namespace millrace {

void GrammarVocabulary::Free::operator()(ffi::GrammarVocabulary* handle) const {
  ffi::millrace_grammar_vocabulary_free(handle);
}

void Grammar::Free::operator()(ffi::Grammar* handle) const {
  ffi::millrace_grammar_free(handle);
}

void GrammarMatcher::Free::operator()(ffi::GrammarMatcher* handle) const {
  ffi::millrace_grammar_matcher_free(handle);
}

Result<GrammarVocabulary> GrammarVocabulary::create(const Tokenizer& tokenizer, std::span<const std::int32_t> eos_ids,
                                                    std::int64_t vocab) {
  ffi::GrammarVocabulary* handle = nullptr;
  ffi::Bytes error;
  if (ffi::millrace_grammar_vocabulary_new(tokenizer.handle_.get(), eos_ids.data(), eos_ids.size(), vocab, &handle,
                                           error.out()) != 0) {
    return error.error();
  }
  return GrammarVocabulary(handle, static_cast<std::size_t>((vocab + 31) / 32));
}

std::string GrammarVocabulary::token_bytes(std::int32_t id) const {
  ffi::Bytes bytes;
  if (ffi::millrace_grammar_vocabulary_token(handle_.get(), id, bytes.out()) != 0) return {};
  return bytes.string();
}

Result<Grammar> Grammar::compile(const GrammarVocabulary& vocabulary, const GrammarSpec& spec) {
  std::vector<ffi::MillraceText> texts;
  if (spec.kind == GrammarSpec::Kind::choice) {
    for (const std::string& choice : spec.choices) texts.push_back({choice.data(), choice.size()});
  } else {
    texts.push_back({spec.text.data(), spec.text.size()});
  }
  ffi::Grammar* handle = nullptr;
  ffi::Bytes error;
  if (ffi::millrace_grammar_new(vocabulary.handle_.get(), static_cast<std::int32_t>(spec.kind), texts.data(),
                                texts.size(), &handle, error.out()) != 0) {
    return error.error();
  }
  return Grammar(handle, vocabulary.mask_words_, spec);
}

GrammarMatcher Grammar::start() const {
  ffi::GrammarMatcher* handle = ffi::millrace_grammar_matcher_new(handle_.get());
  MILLRACE_CHECK(handle != nullptr, "a grammar's matcher could not be forked");
  return GrammarMatcher(handle, mask_words_);
}

Status GrammarMatcher::mask(std::span<std::uint32_t> allowed) {
  MILLRACE_CHECK(allowed.size() == mask_words_, "a mask of {} words: expected {}", allowed.size(), mask_words_);
  ffi::Bytes error;
  if (ffi::millrace_grammar_matcher_mask(handle_.get(), allowed.data(), allowed.size(), error.out()) != 0) {
    return error.error();
  }
  return Ok{};
}

Status GrammarMatcher::accept(std::int32_t token) {
  ffi::Bytes error;
  if (ffi::millrace_grammar_matcher_accept(handle_.get(), token, error.out()) != 0) return error.error();
  return Ok{};
}

bool GrammarMatcher::finished() const {
  return ffi::millrace_grammar_matcher_finished(handle_.get());
}

bool GrammarMatcher::accepting() const {
  return ffi::millrace_grammar_matcher_accepting(handle_.get());
}

}  // namespace millrace
