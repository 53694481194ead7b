#include "text/gguf_vocab.h"

#include "fixtures.h"
#include "text/gguf_pre.h"

namespace millrace::test {
namespace {

GgufVocab byte_level_vocab() {
  GgufVocab vocab;
  vocab.model = "gpt2";
  vocab.pre = "gpt-2";
  vocab.tokens = {"h", "i", "Ġ", "hi", "Ġhi", "<s>", "</s>", "[TOOL]", "1", ""};
  vocab.types = {1, 1, 1, 1, 1, 3, 3, 4, 1, 5};
  vocab.merges = {"h i", "Ġ hi"};
  vocab.bos = 5;
  vocab.eos = 6;
  return vocab;
}

GgufVocab sentencepiece_vocab() {
  GgufVocab vocab;
  vocab.model = "llama";
  vocab.tokens = {"<unk>", "<s>", "</s>"};
  vocab.types = {2, 3, 3};
  for (int byte = 0; byte < 256; ++byte) {
    vocab.tokens.push_back(fmt::format("<0x{:02X}>", byte));
    vocab.types.push_back(6);
  }
  vocab.scores.assign(vocab.tokens.size(), 0.0F);
  float score = -1.0F;
  for (const char* token : {"ab", "bc", "▁a", "▁ab", "abc", "▁", "a", "b", "c"}) {
    vocab.tokens.emplace_back(token);
    vocab.types.push_back(1);
    vocab.scores.push_back(score--);
  }
  vocab.bos = 1;
  vocab.eos = 2;
  vocab.unk = 0;
  return vocab;
}

Tokenizer make(const GgufVocab& vocab) {
  const auto json = tokenizer_json_from_gguf(vocab);
  EXPECT_TRUE(json.ok()) << (json.ok() ? "" : json.error().message);
  auto tokenizer = Tokenizer::from_json(*json);
  EXPECT_TRUE(tokenizer.ok()) << (tokenizer.ok() ? "" : tokenizer.error().message);
  return std::move(tokenizer).value();
}

using Ids = std::vector<std::int32_t>;

TEST(GgufVocab, ByteLevelBpe) {
  GgufVocab vocab = byte_level_vocab();
  EXPECT_EQ(make(vocab).encode("hi hi", true).value(), (Ids{3, 4}));
  EXPECT_EQ(make(vocab).encode("hi<s>[TOOL]hi", true).value(), (Ids{3, 5, 7, 3}));
  EXPECT_EQ(make(vocab).decode(Ids{5, 3, 4, 7, 6}, true).value(), "hi hi[TOOL]") << "control tokens are special";
  vocab.add_bos = true;
  vocab.add_eos = true;
  EXPECT_EQ(make(vocab).encode("hi", true).value(), (Ids{5, 3, 6}));
  EXPECT_EQ(make(vocab).encode("hi", false).value(), (Ids{3}));
  EXPECT_EQ(make(vocab).vocab_size(), 10) << "an empty token keeps its id";
}

TEST(GgufVocab, LlamaThreeAddsItsBosUnlessToldOtherwise) {
  GgufVocab vocab = byte_level_vocab();
  vocab.pre = "llama-bpe";
  EXPECT_EQ(make(vocab).encode("hi", true).value(), (Ids{5, 3}));
  vocab.add_bos = false;
  EXPECT_EQ(make(vocab).encode("hi", true).value(), (Ids{3}));
}

TEST(GgufVocab, SentencePieceJoinsTheBestScoreFirst) {
  GgufVocab vocab = sentencepiece_vocab();
  const Tokenizer tokenizer = make(vocab);
  const auto token = [&](const char* text) { return *tokenizer.token_to_id(text); };
  EXPECT_EQ(tokenizer.encode("ab", true).value(), (Ids{1, token("▁ab")}));
  // "ab" before "bc", then "▁ab" before "abc".
  EXPECT_EQ(tokenizer.encode("abc", false).value(), (Ids{token("▁ab"), token("c")}));
  EXPECT_EQ(tokenizer.encode("é", false).value(), (Ids{token("▁"), token("<0xC3>"), token("<0xA9>")}));
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(" abc  é", true).value(), true).value(), " abc  é");
  vocab.add_space_prefix = false;
  EXPECT_EQ(make(vocab).encode("abc", false).value(), (Ids{token("abc")}));
  EXPECT_EQ(make(vocab).decode(Ids{token("▁ab")}, true).value(), " ab");
}

TEST(GgufVocab, UnigramWithItsEos) {
  GgufVocab vocab;
  vocab.model = "t5";
  vocab.tokens = {"<pad>", "</s>", "<unk>", "▁", "▁he", "llo", "▁hello", "l", "o"};
  vocab.types = {3, 3, 2, 1, 1, 1, 1, 1, 1};
  vocab.scores = {0, 0, 0, -2, -3, -3, -4, -5, -5};
  vocab.eos = 1;
  vocab.unk = 2;
  EXPECT_EQ(make(vocab).encode("hello", true).value(), (Ids{6, 1}));
  EXPECT_EQ(make(vocab).encode("he  llo", true).value(), (Ids{4, 3, 5, 1}));
  EXPECT_EQ(make(vocab).decode(Ids{4, 6, 1}, true).value(), "he hello");
}

TEST(GgufVocab, SpacesOfGemmaFour) {
  GgufVocab vocab;
  vocab.model = "gemma4";
  vocab.tokens = {"<unk>", "<bos>", "a", "▁", "▁a", "\n", "\n\n"};
  vocab.types = {2, 3, 1, 1, 1, 1, 1};
  for (int byte = 0; byte < 256; ++byte) {
    vocab.tokens.push_back(fmt::format("<0x{:02X}>", byte));
    vocab.types.push_back(6);
  }
  vocab.merges = {"▁ a"};
  vocab.bos = 1;
  vocab.unk = 0;
  const Tokenizer tokenizer = make(vocab);
  EXPECT_EQ(tokenizer.encode("a a\n\na", true).value(), (Ids{1, 2, 4, 6, 2}));
  EXPECT_EQ(tokenizer.decode(Ids{1, 4, 6, 2, 7 + 0xC3, 7 + 0xA9}, true).value(), " a\n\naé");
}

TEST(GgufVocab, EveryNamedPreTokenizerCompiles) {
  const std::string names = gguf_pre_tokenizer_names();
  std::size_t from = 0, count = 0;
  while (from < names.size()) {
    const std::size_t end = std::min(names.find(", ", from), names.size());
    GgufVocab vocab = byte_level_vocab();
    vocab.pre = names.substr(from, end - from);
    if (vocab.pre == "gemma4" || vocab.pre == "sarvam-moe") {
      vocab.tokens[2] = "▁", vocab.tokens[4] = "▁hi", vocab.merges[1] = "▁ hi";
    }
    vocab.add_bos = false;
    // Whatever the pieces are, these are: a word, and a space with a word.
    EXPECT_EQ(make(vocab).encode("hi hi", true).value(), (Ids{3, 4})) << vocab.pre;
    EXPECT_EQ(make(vocab).encode("11", true).value(), (Ids{8, 8})) << vocab.pre;
    ++count;
    from = end + 2;
  }
  EXPECT_GT(count, 50U);
}

TEST(GgufVocab, ErrorsNameWhatIsWrong) {
  const auto error = [](const GgufVocab& vocab) {
    const auto json = tokenizer_json_from_gguf(vocab);
    return json.ok() ? std::string("none") : json.error().message;
  };
  const auto changed = [&](auto change) {
    GgufVocab vocab = byte_level_vocab();
    change(vocab);
    return error(vocab);
  };
  EXPECT_EQ(error(byte_level_vocab()), "none");
  EXPECT_EQ(error({}), "tokenizer.ggml.tokens is empty");
  EXPECT_EQ(changed([](GgufVocab& v) { v.pre = "nope"; }).find("unknown pre-tokenizer \"nope\""), 0U);
  EXPECT_NE(changed([](GgufVocab& v) { v.pre = "nope"; }).find("llama-bpe"), std::string::npos);
  EXPECT_EQ(changed([](GgufVocab& v) { v.model = "rwkv"; }),
            "unknown tokenizer \"rwkv\" (tokenizer.ggml.model); known are: gpt2, gemma4, llama, t5");
  EXPECT_EQ(changed([](GgufVocab& v) { v.types.pop_back(); }),
            "tokenizer.ggml.token_type has 9 entries, expected one for each of 10 tokens");
  EXPECT_EQ(changed([](GgufVocab& v) { v.scores = {1.0F}; }),
            "tokenizer.ggml.scores has 1 entries, expected one for each of 10 tokens");
  EXPECT_EQ(changed([](GgufVocab& v) { v.bos = 10; }), "the vocabulary's bos_token is id 10, but there are 10 tokens");
  EXPECT_EQ(changed([](GgufVocab& v) { v.tokens[1] = "h"; }), "tokenizer.ggml.tokens has \"h\" twice, as 0 and 1");
  EXPECT_EQ(changed([](GgufVocab& v) { v.merges.clear(); }),
            "tokenizer.ggml.merges is missing, expected for the model \"gpt2\"");
  EXPECT_EQ(changed([](GgufVocab& v) { v.merges[1] = "hi"; }),
            "tokenizer.ggml.merges[1] is \"hi\", expected two tokens with a space between them");
  EXPECT_EQ(changed([](GgufVocab& v) { v.tokens[1] = "\xff"; }),
            "tokenizer.ggml.tokens or merges hold text that is not UTF-8");
  EXPECT_EQ(changed([](GgufVocab& v) { v.model = "llama"; }),
            "tokenizer.ggml.scores is missing, expected for the model \"llama\"");
}

TEST(GgufVocab, ConfigNamesTheSpecialTokens) {
  GgufVocab vocab = byte_level_vocab();
  vocab.add_bos = true;
  EXPECT_EQ(tokenizer_config_from_gguf(vocab),
            (nlohmann::json{{"bos_token", "<s>"}, {"eos_token", "</s>"}, {"add_bos_token", true}}));
}

}  // namespace
}  // namespace millrace::test
