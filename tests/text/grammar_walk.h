// Random walks through a grammar: at each step one of the tokens that may come, and a look at what must hold at every
// place.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fixtures.h"
#include "text/grammar.h"

namespace millrace::test {

using Random = std::mt19937_64;

inline std::size_t below(Random& random, std::size_t n) {
  return static_cast<std::size_t>(random()) % n;
}

/// A tokenizer with its end-of-sequence token, and its tokens as grammars see them.
struct Words {
  Tokenizer tokenizer;
  std::int32_t eos;
  std::int64_t vocab;
  GrammarVocabulary vocabulary;

  /// `vocab`: 0: as many as the tokenizer has.
  static Words of(const std::string& json, const std::string& eos, std::int64_t vocab = 0) {
    auto tokenizer = Tokenizer::from_json(json);
    EXPECT_TRUE(tokenizer.ok()) << (tokenizer.ok() ? "" : tokenizer.error().message);
    const std::int32_t id = tokenizer->token_to_id(eos).value_or(-1);
    if (vocab == 0) vocab = tokenizer->vocab_size();
    auto vocabulary = GrammarVocabulary::create(*tokenizer, std::span(&id, 1), vocab);
    EXPECT_TRUE(vocabulary.ok()) << (vocabulary.ok() ? "" : vocabulary.error().message);
    return {std::move(tokenizer).value(), id, vocab, std::move(vocabulary).value()};
  }

  /// A byte-level one of 4096 tokens.
  static Words tiny() { return of(read_file(MILLRACE_SOURCE_DIR "/models/millrace-tiny/tokenizer.json"), "<|end|>"); }
  /// A SentencePiece one with byte fallback, of 512 tokens.
  static Words stories() { return of(read_file(MILLRACE_SOURCE_DIR "/models/stories260K/tokenizer.json"), "</s>"); }

  [[nodiscard]] Grammar compiled(const GrammarSpec& spec) const {
    auto grammar = Grammar::compile(vocabulary, spec);
    EXPECT_TRUE(grammar.ok()) << spec.text.substr(0, 1000) << "\n" << (grammar.ok() ? "" : grammar.error().message);
    return std::move(grammar).value();
  }

  [[nodiscard]] std::vector<std::int32_t> allowed(GrammarMatcher& matcher) const {
    std::vector<std::uint32_t> words(static_cast<std::size_t>((vocab + 31) / 32), ~0U);
    const auto status = matcher.mask(words);
    EXPECT_TRUE(status.ok()) << (status.ok() ? "" : status.error().message);
    std::vector<std::int32_t> ids;
    for (std::size_t i = 0; status.ok() && i < words.size() * 32; ++i) {
      if ((words[i / 32] >> (i % 32) & 1U) != 0) ids.push_back(static_cast<std::int32_t>(i));
    }
    EXPECT_TRUE(ids.empty() || ids.back() < vocab);
    return ids;
  }
};

inline GrammarSpec json_schema(const nlohmann::json& schema) {
  return {GrammarSpec::Kind::json_schema, schema.dump(), {}};
}
inline GrammarSpec regex(const std::string& text) {
  return {GrammarSpec::Kind::regex, text, {}};
}
inline GrammarSpec lark(const std::string& text) {
  return {GrammarSpec::Kind::lark, text, {}};
}
inline GrammarSpec choice(std::vector<std::string> choices) {
  return {GrammarSpec::Kind::choice, {}, std::move(choices)};
}

struct Answer {
  std::string text;
  std::vector<std::int32_t> ids;
  bool ended = false;  // by an end-of-sequence token, before the limit of steps
};

/// Where the answer may end, it does so with a probability of one half.
inline Answer walk(const Words& words, const Grammar& grammar, Random& random, int steps = 3000) {
  Answer answer;
  GrammarMatcher matcher = grammar.start();
  for (int step = 0; step < steps && !answer.ended; ++step) {
    const auto allowed = words.allowed(matcher);
    if (allowed.empty()) {
      ADD_FAILURE() << "nothing may come after \"" << words.tokenizer.decode(answer.ids, true).value() << '"';
      break;
    }
    const bool may_end = std::ranges::count(allowed, words.eos) == 1;
    EXPECT_EQ(matcher.accepting(), may_end);
    EXPECT_EQ(matcher.finished(), may_end && allowed.size() == 1);
    const auto other = static_cast<std::int32_t>(below(random, static_cast<std::size_t>(words.vocab)));
    if (!std::ranges::binary_search(allowed, other)) {
      EXPECT_FALSE(matcher.accept(other).ok()) << "token " << other << " is not allowed";
    }
    const bool end = may_end && below(random, 2) == 0;
    const std::int32_t token = end ? words.eos : allowed[below(random, allowed.size())];
    const auto accepted = matcher.accept(token);
    EXPECT_TRUE(accepted.ok()) << (accepted.ok() ? "" : accepted.error().message);
    answer.ended = token == words.eos;
    if (!answer.ended) answer.ids.push_back(token);
  }
  EXPECT_EQ(answer.ended, answer.ended && matcher.finished());
  answer.text = words.tokenizer.decode(answer.ids, true).value();
  return answer;
}

}  // namespace millrace::test
