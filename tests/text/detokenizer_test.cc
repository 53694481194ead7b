#include "text/detokenizer.h"

#include <algorithm>

#include "fixtures.h"

namespace millrace::test {
namespace {

std::vector<std::int32_t> ids_of(const Tokenizer& tokenizer, std::initializer_list<const char*> tokens) {
  std::vector<std::int32_t> ids;
  for (const char* token : tokens) {
    ids.push_back(tokenizer.token_to_id(token).value_or(-1));
    EXPECT_GE(ids.back(), 0) << token;
  }
  return ids;
}

std::vector<std::string> pieces(const Tokenizer& tokenizer, const std::vector<std::int32_t>& ids, bool skip = true) {
  Detokenizer detokenizer(tokenizer, skip);
  std::vector<std::string> pieces;
  for (const std::int32_t id : ids) pieces.push_back(detokenizer.push(id));
  pieces.push_back(detokenizer.finish());
  return pieces;
}

using Pieces = std::vector<std::string>;

/// A tokenizer.json of a few words with the given decoder.
Tokenizer with_decoder(const nlohmann::json& decoder, const std::vector<std::string>& tokens) {
  nlohmann::json vocab = nlohmann::json::object();
  for (std::size_t i = 0; i < tokens.size(); ++i) vocab[tokens[i]] = i;
  nlohmann::json added = nlohmann::json::array();
  for (const char* special : {"<|a|>", "▁<b>"}) {
    added.push_back({{"id", vocab.size() + added.size()},
                     {"content", special},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const nlohmann::json json = {{"version", "1.0"},
                               {"added_tokens", added},
                               {"decoder", decoder},
                               {"model", {{"type", "WordLevel"}, {"vocab", vocab}, {"unk_token", tokens[0]}}}};
  auto tokenizer = Tokenizer::from_json(json.dump());
  EXPECT_TRUE(tokenizer.ok()) << (tokenizer.ok() ? "" : tokenizer.error().message);
  return std::move(tokenizer).value();
}

TEST(Detokenizer, ByteLevelHoldsHalfCharactersBack) {
  const Tokenizer tokenizer = fixture_tokenizer("byte_level_bpe");
  // U+1F999 is F0 9F A6 99.
  EXPECT_EQ(pieces(tokenizer, ids_of(tokenizer, {"A", "ð", "Ł", "¦", "Ļ", "B"})),
            (Pieces{"A", "", "", "", "🦙", "B", ""}));
  EXPECT_EQ(pieces(tokenizer, ids_of(tokenizer, {"A", "ð", "Ł", "B"})), (Pieces{"A", "", "", "\uFFFDB", ""}));
  EXPECT_EQ(pieces(tokenizer, ids_of(tokenizer, {"ð", "Ł"})), (Pieces{"", "", "\uFFFD"}));
  EXPECT_EQ(pieces(tokenizer, ids_of(tokenizer, {"ÿ", "A"})), (Pieces{"\uFFFD", "A", ""}));
}

TEST(Detokenizer, ByteFallbackHoldsRowsOfBytesBack) {
  const Tokenizer tokenizer = fixture_tokenizer("spm_bpe");
  EXPECT_EQ(pieces(tokenizer, ids_of(tokenizer, {"▁the", "<0xF0>", "<0x9F>", "<0xA6>", "<0x99>", "▁a"})),
            (Pieces{"the", "", "", "", "", "🦙 a", ""}));
  EXPECT_EQ(pieces(tokenizer, ids_of(tokenizer, {"<0xF0>", "<0x9F>"})), (Pieces{"", "", "\uFFFD\uFFFD"}));
  EXPECT_EQ(pieces(tokenizer, ids_of(tokenizer, {"<0x41>", "<0xFF>", "▁a"})), (Pieces{"", "", "\uFFFD\uFFFD a", ""}))
      << "one byte that is not UTF-8 spoils its row, in decode() as well";
}

TEST(Detokenizer, OnlyTheFirstSpaceGoes) {
  for (const char* kind : {"spm_bpe", "unigram"}) {
    const Tokenizer tokenizer = fixture_tokenizer(kind);
    EXPECT_EQ(pieces(tokenizer, ids_of(tokenizer, {"<s>", "▁the", "▁the", "s"})), (Pieces{"", "the", " the", "s", ""}))
        << kind;
  }
}

TEST(Detokenizer, SpecialAndUnknownTokensHaveNoText) {
  const Tokenizer tokenizer = fixture_tokenizer("byte_level_bpe");
  Detokenizer detokenizer(tokenizer);
  EXPECT_EQ(detokenizer.push(*tokenizer.token_to_id("<|endoftext|>")), "");
  EXPECT_EQ(detokenizer.push(-1), "");
  EXPECT_EQ(detokenizer.push(1'000'000), "");
  EXPECT_EQ(detokenizer.push(*tokenizer.token_to_id("[INST]")), "[INST]") << "added, but not special";
  EXPECT_EQ(detokenizer.finish(), "");
}

TEST(Detokenizer, SpecialTokensHaveTextWhereTheyAreNotSkipped) {
  const Tokenizer tokenizer = fixture_tokenizer("byte_level_bpe");
  const auto special = Detokenizer::special_tokens(tokenizer);
  EXPECT_NE(std::find(special.begin(), special.end(), "<|endoftext|>"), special.end());
  EXPECT_EQ(std::find(special.begin(), special.end(), "[INST]"), special.end());
  Detokenizer detokenizer(tokenizer, false);
  EXPECT_EQ(detokenizer.push(*tokenizer.token_to_id("<|endoftext|>")), "<|endoftext|>");
  EXPECT_EQ(detokenizer.push(-1), "");
  EXPECT_EQ(detokenizer.finish(), "");
}

TEST(Detokenizer, KeepsItsTokenizerAlive) {
  auto tokenizer = std::make_unique<Tokenizer>(fixture_tokenizer("byte_level_bpe"));
  Detokenizer detokenizer(*tokenizer);
  const std::int32_t id = *tokenizer->token_to_id("A");
  tokenizer.reset();
  EXPECT_EQ(detokenizer.push(id), "A");
}

TEST(Detokenizer, EveryDecoderStreamsAsItDecodes) {
  const auto sequence = [](nlohmann::json steps) {
    return nlohmann::json{{"type", "Sequence"}, {"decoders", std::move(steps)}};
  };
  const nlohmann::json fuse = {{"type", "Fuse"}};
  const auto replace = [](const char* kind, const char* pattern, const char* content) {
    return nlohmann::json{{"type", "Replace"}, {"pattern", {{kind, pattern}}}, {"content", content}};
  };
  const auto strip = [](int start, int stop) {
    return nlohmann::json{{"type", "Strip"}, {"content", "_"}, {"start", start}, {"stop", stop}};
  };
  const nlohmann::json decoders[] = {
      nullptr,
      fuse,
      {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}},
      {{"type", "BPEDecoder"}, {"suffix", "</w>"}},
      {{"type", "CTC"}, {"pad_token", "<pad>"}, {"word_delimiter_token", "|"}, {"cleanup", true}},
      {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "always"}, {"split", true}},
      {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "never"}, {"split", true}},
      {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}},
      {{"type", "ByteFallback"}},
      replace("String", "ab", "X"),
      sequence({fuse, replace("String", "aba", "X")}),
      sequence({fuse, replace("Regex", "a+", "X")}),
      sequence({fuse, strip(2, 0)}),
      sequence({fuse, strip(1, 2)}),
      sequence({fuse, {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "always"}, {"split", true}}}),
      sequence({{{"type", "ByteFallback"}}, sequence({replace("String", "▁", " "), fuse}), strip(1, 1)}),
      sequence({{{"type", "ByteFallback"}},
                {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "always"}, {"split", true}}}),
  };
  const std::vector<std::string> tokens = {"<pad>", "a",   "b",  "ab",    "ba",     "_",      "__",     "a_", "▁a",
                                           "▁",     "##b", "'s", "x</w>", "<0x41>", "<0xC3>", "<0xA9>", "|",  ".",
                                           "é",     "ð",   "Ł",  "n't",   "</w>y",  "Ġ",      "don"};
  std::uint32_t state = 1;
  for (const nlohmann::json& decoder : decoders) {
    const Tokenizer tokenizer = with_decoder(decoder, tokens);
    for (int round = 0; round < 300; ++round) {
      // Something other than "_" at the ends: where a Strip meets a text that is all "_", decode() itself fails.
      std::vector<std::int32_t> ids = {1};
      for (int i = round % 12; i > 0; --i) {
        state = state * 1664525U + 1013904223U;
        ids.push_back(static_cast<std::int32_t>((state >> 16U) % (tokens.size() + 2)));  // the special ones follow
      }
      if (round % 2 == 0) std::swap(ids.front(), ids.back());
      for (const bool skip : {true, false}) {
        const auto decoded = tokenizer.decode(ids, skip);
        if (!decoded.ok()) continue;
        std::string streamed;
        for (const std::string& piece : pieces(tokenizer, ids, skip)) streamed += piece;
        ASSERT_EQ(streamed, *decoded) << decoder.dump() << ' ' << nlohmann::json(ids).dump() << ' ' << skip;
      }
    }
  }
}

}  // namespace
}  // namespace millrace::test
