// Grammars on the tokenizers of the repository: what tokens write, and what may come next.

#include "text/grammar.h"

#include <regex>
#include <thread>

#include "grammar_walk.h"
#include "lines.h"
#include "text/detokenizer.h"

namespace millrace::test {
namespace {

Words fixture_words(const std::string& kind) {
  return Words::of(fixture(kind + "/tokenizer.json"), kind == "byte_level_bpe" ? "<|endoftext|>" : "</s>");
}

std::string bytes_of(const Words& words, const std::vector<std::int32_t>& ids) {
  std::string bytes;
  for (const std::int32_t id : ids) bytes += words.vocabulary.token_bytes(id);
  return bytes;
}

/// The tokens' bytes, put together, are the text. Decoders that drop a space at the beginning see one more token there.
void expect_bytes_are_the_text(const Words& words) {
  const Lines lines(nlohmann::json::parse(fixture("pieces.json")));
  const auto front = words.tokenizer.encode("x", false).value();
  const std::string front_text = words.tokenizer.decode(front, true).value();
  const auto expect = [&](std::vector<std::int32_t> ids) {
    ids.insert(ids.begin(), front.begin(), front.end());
    const std::string text = words.tokenizer.decode(ids, true).value();
    if (text.find("\uFFFD") != std::string::npos) return 0;
    EXPECT_EQ(front_text + bytes_of(words, {ids.begin() + static_cast<std::ptrdiff_t>(front.size()), ids.end()}), text);
    return 1;
  };
  int compared = 0;
  for (std::uint64_t number = 0; number < 300; ++number) {
    compared += expect(words.tokenizer.encode(lines.line(number), false).value());
  }
  Random random(5);
  for (int i = 0; i < 300; ++i) {
    std::vector<std::int32_t> ids(1 + below(random, 20));
    for (std::int32_t& id : ids) id = static_cast<std::int32_t>(below(random, static_cast<std::size_t>(words.vocab)));
    compared += expect(ids);
  }
  EXPECT_GT(compared, 250);
}

TEST(GrammarVocabulary, BytesOfTokensAreTheTextOfThem) {
  expect_bytes_are_the_text(Words::tiny());
  expect_bytes_are_the_text(Words::stories());
  for (const char* kind : {"byte_level_bpe", "spm_bpe", "unigram"}) expect_bytes_are_the_text(fixture_words(kind));
}

TEST(GrammarVocabulary, SpecialAndUnknownTokensHaveNoBytes) {
  const Words words = Words::of(fixture("byte_level_bpe/tokenizer.json"), "<|endoftext|>", 2000);
  for (const std::int32_t id : {1500, 1501, 1999, 2000, -1}) EXPECT_EQ(words.vocabulary.token_bytes(id), "") << id;
  EXPECT_EQ(words.vocabulary.token_bytes(1502), "[INST]");
  GrammarMatcher matcher = words.compiled(regex("(.|\n)*")).start();
  const auto allowed = words.allowed(matcher);
  EXPECT_EQ(std::ranges::count(allowed, 1500), 1) << "the end";
  EXPECT_EQ(std::ranges::count_if(allowed, [](std::int32_t id) { return id == 1501 || id > 1503; }), 0);
  EXPECT_EQ(std::ranges::count(allowed, 1502), 1);
}

TEST(GrammarVocabulary, ErrorsNameTheArgument) {
  const Tokenizer tokenizer = fixture_tokenizer("spm_bpe");
  const auto error = [&](std::vector<std::int32_t> eos, std::int64_t vocab) {
    const auto vocabulary = GrammarVocabulary::create(tokenizer, eos, vocab);
    return vocabulary.ok() ? "" : vocabulary.error().message;
  };
  EXPECT_EQ(error({2}, 1500), "");
  EXPECT_NE(error({}, 1500).find("no end-of-sequence token"), std::string::npos);
  EXPECT_NE(error({1500}, 1500).find("1500"), std::string::npos);
  EXPECT_NE(error({-1}, 1500).find("-1"), std::string::npos);
  EXPECT_NE(error({0}, 0).find("expected 1 to"), std::string::npos);
  EXPECT_NE(error({0}, std::int64_t{1} << 40).find("expected 1 to"), std::string::npos);
  const auto words = Tokenizer::from_json(R"({"version":"1.0","added_tokens":[],"decoder":{"type":"WordPiece",
      "prefix":"##","cleanup":true},"model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}})");
  const std::int32_t eos = 0;
  const auto vocabulary = GrammarVocabulary::create(words.value(), std::span(&eos, 1), 1);
  ASSERT_FALSE(vocabulary.ok());
  EXPECT_NE(vocabulary.error().message.find("WordPiece"), std::string::npos);
}

TEST(Grammar, RegularExpressionsAreMatchedWhole) {
  for (const Words& words : {Words::tiny(), Words::stories()}) {
    Random random(11);
    int judged = 0;
    for (const char* text :
         {"[0-9]{3}-[a-z]{1,4}", "(foo|bar)+", "^abc?$", "a*", "yes|no|maybe so", "[A-Z][a-z]* [0-9]+",
          "\\$[1-9][0-9]*\\.[0-9]{2}", "[^abc\\n]{3}", "/path/[\\w]{1,5}/?", "\\\\x\\\\"}) {
      const Grammar grammar = words.compiled(regex(text));
      for (int i = 0; i < 10; ++i) {
        const Answer answer = walk(words, grammar, random, 400);
        // std::regex takes bytes for characters, so it judges ASCII only.
        if (!answer.ended || std::ranges::any_of(answer.text, [](char c) { return c < 0; })) continue;
        ++judged;
        EXPECT_TRUE(std::regex_match(answer.text, std::regex(text))) << text << ": " << answer.text;
      }
    }
    EXPECT_GT(judged, 50);
  }
}

TEST(Grammar, CharactersMayBeCutBetweenTokens) {
  const Words words = Words::stories();  // which has no llama
  Random random(2);
  const Grammar grammar = words.compiled(regex("(🦙){2,5}"));
  for (int i = 0; i < 10; ++i) {
    const Answer answer = walk(words, grammar, random);
    EXPECT_TRUE(answer.ended);
    EXPECT_GE(answer.ids.size(), 8U);
    EXPECT_EQ(answer.text.find("\uFFFD"), std::string::npos);
    EXPECT_TRUE(std::regex_match(answer.text, std::regex("(🦙){2,5}"))) << answer.text;
  }
}

TEST(Grammar, ChoicesAreWrittenAsTheyAre) {
  const std::vector<std::string> choices = {"yes", "yes please", "no", " no", "  two", "日本", "a\"b\\c\n"};
  for (const char* kind : {"byte_level_bpe", "spm_bpe", "tiny", "stories"}) {
    const Words words = std::string(kind) == "tiny"      ? Words::tiny()
                        : std::string(kind) == "stories" ? Words::stories()
                                                         : fixture_words(kind);
    const Grammar grammar = words.compiled(choice(choices));
    Random random(1);
    std::vector<std::string> seen;
    for (int i = 0; i < 200; ++i) {
      const Answer answer = walk(words, grammar, random);
      ASSERT_TRUE(answer.ended);
      EXPECT_EQ(std::ranges::count(choices, answer.text), 1) << kind << ": \"" << answer.text << '"';
      Detokenizer detokenizer(words.tokenizer);
      std::string streamed;
      for (const std::int32_t id : answer.ids) streamed += detokenizer.push(id);
      EXPECT_EQ(streamed + detokenizer.finish(), answer.text);
      seen.push_back(answer.text);
    }
    for (const std::string& one : choices) EXPECT_GT(std::ranges::count(seen, one), 0) << kind << ": \"" << one << '"';
  }
}

TEST(Grammar, TheSpaceThatDecodersDropIsNotInTheAnswer) {
  const Words words = Words::stories();
  const auto the = words.tokenizer.token_to_id("▁the").value();
  EXPECT_EQ(words.vocabulary.token_bytes(the), " the");
  GrammarMatcher matcher = words.compiled(choice({"the the"})).start();
  EXPECT_TRUE(matcher.accept(the).ok()) << "writes \"the\" at the beginning";
  EXPECT_FALSE(matcher.finished());
  EXPECT_TRUE(matcher.accept(the).ok()) << "and \" the\" afterwards";
  EXPECT_TRUE(matcher.finished());
  EXPECT_EQ(words.tokenizer.decode(std::vector{the, the}, true).value(), "the the");
}

TEST(Grammar, LarkGrammarsAreFollowed) {
  const Words words = Words::tiny();
  const Grammar sums =
      words.compiled(lark("start: sum\nsum: product (\" + \" product)*\n"
                          "product: NUMBER | \"(\" sum \")\"\nNUMBER: /[1-9][0-9]?/"));
  Random random(4);
  int ended = 0;
  for (int i = 0; i < 30; ++i) {
    const Answer answer = walk(words, sums, random, 300);
    if (!answer.ended) continue;
    ++ended;
    int open = 0;
    for (const char c : answer.text) ASSERT_GE(open += (c == '(') - (c == ')'), 0) << answer.text;
    EXPECT_EQ(open, 0);
    EXPECT_EQ(answer.text.find_first_not_of("0123456789()+ "), std::string::npos) << answer.text;
  }
  EXPECT_GT(ended, 10);

  const Grammar with_json = words.compiled(lark("start: \"<call>\" %json {\"enum\": [{\"a\": 1}]} \"</call>\""));
  for (int i = 0; i < 5; ++i) {
    const Answer answer = walk(words, with_json, random);
    ASSERT_TRUE(answer.ended && answer.text.starts_with("<call>") && answer.text.ends_with("</call>")) << answer.text;
    EXPECT_EQ(nlohmann::json::parse(answer.text.substr(6, answer.text.size() - 13)), nlohmann::json({{"a", 1}}));
  }

  GrammarMatcher special = words.compiled(lark("start: <|user|> \"a\"")).start();
  EXPECT_EQ(words.allowed(special), std::vector{words.tokenizer.token_to_id("<|user|>").value()})
      << "a special token may come where a grammar names it";
}

TEST(Grammar, TheEndMayComeExactlyWhereTheAnswerMayEnd) {
  const Words words = Words::tiny();
  const Grammar grammar = words.compiled(regex("ab?"));
  GrammarMatcher matcher = grammar.start();
  const auto a = words.tokenizer.token_to_id("a").value();
  const auto b = words.tokenizer.token_to_id("b").value();
  EXPECT_FALSE(matcher.accepting());
  EXPECT_FALSE(matcher.accept(words.eos).ok());
  ASSERT_TRUE(matcher.accept(a).ok());
  EXPECT_TRUE(matcher.accepting());
  EXPECT_FALSE(matcher.finished());
  EXPECT_EQ(words.allowed(matcher).size(), 2U);
  const auto refused = matcher.accept(a);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("not allowed"), std::string::npos);
  EXPECT_FALSE(matcher.accept(-1).ok());
  EXPECT_FALSE(matcher.accept(1 << 30).ok());
  ASSERT_TRUE(matcher.accept(b).ok()) << "refusals changed nothing";
  EXPECT_TRUE(matcher.finished());
  EXPECT_EQ(words.allowed(matcher), std::vector{words.eos});
  EXPECT_FALSE(matcher.accept(b).ok());
  EXPECT_TRUE(matcher.accept(words.eos).ok());
  EXPECT_TRUE(matcher.finished());

  GrammarMatcher other = grammar.start();
  ASSERT_TRUE(other.accept(a).ok());
  ASSERT_TRUE(other.accept(words.eos).ok());
  EXPECT_TRUE(other.finished()) << "the end came";
  EXPECT_EQ(words.allowed(other), std::vector{words.eos});
}

TEST(Grammar, OutlivesItsVocabularyAndServesSeveralThreads) {
  auto words = std::make_unique<Words>(Words::stories());
  const Grammar grammar = words->compiled(json_schema({{"type", "array"}, {"items", {{"type", "boolean"}}}}));
  const std::string tokenizer = read_file(MILLRACE_SOURCE_DIR "/models/stories260K/tokenizer.json");
  words.reset();
  std::vector<std::string> texts(8);
  std::vector<std::thread> threads;
  for (std::string& text : texts) {
    threads.emplace_back([&] {
      const Words own = Words::of(tokenizer, "</s>");
      Random random(99);
      text = walk(own, grammar, random).text;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(texts[0].empty());
  for (const std::string& text : texts) EXPECT_EQ(text, texts[0]);
}

}  // namespace
}  // namespace millrace::test
