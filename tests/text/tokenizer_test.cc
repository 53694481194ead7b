#include "text/tokenizer.h"

#include <thread>

#include "fixtures.h"

namespace millrace::test {
namespace {

TEST(Tokenizer, EncodesWithAndWithoutSpecialTokens) {
  const Tokenizer tokenizer = fixture_tokenizer("byte_level_bpe");
  const auto plain = tokenizer.encode("Hello world", false).value();
  auto marked = tokenizer.encode("Hello world", true).value();
  ASSERT_FALSE(plain.empty());
  EXPECT_EQ(marked.front(), tokenizer.token_to_id("<|endoftext|>"));
  marked.erase(marked.begin());
  EXPECT_EQ(marked, plain);
  EXPECT_EQ(tokenizer.encode("<|im_start|>", false).value(), std::vector{*tokenizer.token_to_id("<|im_start|>")});
  EXPECT_TRUE(tokenizer.encode("", false).value().empty());
}

TEST(Tokenizer, DecodesWhatItEncoded) {
  for (const char* kind : {"byte_level_bpe", "spm_bpe"}) {
    const Tokenizer tokenizer = fixture_tokenizer(kind);
    for (const std::string text : {"Hello, world!", "naïve 🦙 中文", " two  spaces ", "line\nline\t"}) {
      const auto ids = tokenizer.encode(text, true).value();
      EXPECT_EQ(tokenizer.decode(ids, true).value(), text) << kind;
      EXPECT_NE(tokenizer.decode(ids, false).value(), text) << kind;
    }
    EXPECT_EQ(tokenizer.decode({}, true).value(), "");
  }
}

TEST(Tokenizer, KnowsItsTokens) {
  const Tokenizer tokenizer = fixture_tokenizer("spm_bpe");
  EXPECT_EQ(tokenizer.id_to_token(1), "<s>");
  EXPECT_EQ(tokenizer.token_to_id("<0x0A>"), 13);
  EXPECT_EQ(tokenizer.token_to_id("no such token"), std::nullopt);
  EXPECT_EQ(tokenizer.id_to_token(-1), std::nullopt);
  EXPECT_EQ(tokenizer.id_to_token(1'000'000), std::nullopt);
  EXPECT_EQ(tokenizer.vocab_size(), 1500);
  const std::vector<std::int32_t> ids = {-5, 1'000'000, *tokenizer.token_to_id("▁the")};
  EXPECT_EQ(tokenizer.decode(ids, true).value(), "the") << "unknown ids are passed over";
}

TEST(Tokenizer, RefusesWhatIsNotUtf8) {
  const Tokenizer tokenizer = fixture_tokenizer("unigram");
  EXPECT_EQ(tokenizer.encode("ab\xff", false).error().message,
            "the text is not UTF-8: byte 2 (0xff) does not belong there");
  EXPECT_FALSE(tokenizer.encode("\xed\xa0\x80", false).ok()) << "a surrogate";
}

TEST(Tokenizer, BrokenFilesAreErrorsOfOneLine) {
  const std::string good = fixture("unigram/tokenizer.json");
  for (
      const std::string& text :
      {std::string(), std::string("{"), std::string("{}"), std::string("[]"),
       std::string(R"({"model": {"type": "BPE"}})"), good.substr(0, good.size() / 2), std::string("\xff"),
       std::string(100'000, '['),
       std::string(R"({"version":"1.0","added_tokens":[],"model":{"type":"Unigram","unk_id":7,"vocab":[["a",0.0]]}})"),
       std::string(
           R"({"added_tokens":[],"pre_tokenizer":{"type":"Split","pattern":{"Regex":"(("},"behavior":"Isolated","invert":false},"model":{"type":"BPE","vocab":{},"merges":[]}})"),
       std::string(
           R"({"added_tokens":[],"normalizer":{"type":"Precompiled","precompiled_charsmap":"AAA="},"model":{"type":"BPE","vocab":{},"merges":[]}})")}) {
    const auto tokenizer = Tokenizer::from_json(text);
    ASSERT_FALSE(tokenizer.ok()) << text.substr(0, 100);
    EXPECT_EQ(tokenizer.error().message.find("tokenizer.json: "), 0U) << tokenizer.error().message;
    EXPECT_EQ(tokenizer.error().message.find('\n'), std::string::npos);
  }
}

TEST(Tokenizer, TruncationAndPaddingOfTheFileAreDropped) {
  auto json = nlohmann::ordered_json::parse(fixture("spm_bpe/tokenizer.json"));
  json["truncation"] = {{"direction", "Right"}, {"max_length", 4}, {"strategy", "LongestFirst"}, {"stride", 0}};
  json["padding"] = {{"strategy", {{"Fixed", 64}}},
                     {"direction", "Right"},
                     {"pad_to_multiple_of", nullptr},
                     {"pad_id", 0},
                     {"pad_type_id", 0},
                     {"pad_token", "<unk>"}};
  const auto tokenizer = Tokenizer::from_json(json.dump());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  const std::string text = "a text of more than four tokens";
  EXPECT_EQ(tokenizer->encode(text, true).value(), fixture_tokenizer("spm_bpe").encode(text, true).value());
}

TEST(Tokenizer, ServesSeveralThreadsAtOnce) {
  const Tokenizer tokenizer = fixture_tokenizer("byte_level_bpe");
  const auto expected = tokenizer.encode("The quick brown fox jumps over the lazy dog 1234", true).value();
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (std::size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        const auto ids = tokenizer.encode("The quick brown fox jumps over the lazy dog 1234", true);
        if (!ids.ok() || *ids != expected) ++wrong[t];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

}  // namespace
}  // namespace millrace::test
