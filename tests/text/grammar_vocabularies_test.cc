// Grammars on the vocabularies of published models, read from ../shared/data/tokenizers where they are there.

#include <filesystem>

#include "grammar_walk.h"
#include "model/checkpoint/checkpoint.h"

namespace millrace::test {
namespace {

TEST(GrammarVocabularies, BytesOfTokensAreTheTextAndGrammarsHold) {
  const auto directory = std::filesystem::path(MILLRACE_SOURCE_DIR) / ".." / "shared" / "data" / "tokenizers";
  if (!std::filesystem::is_directory(directory)) GTEST_SKIP() << "no vocabularies in " << directory;
  int vocabularies = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.path().extension() != ".gguf") continue;
    ++vocabularies;
    const std::string name = entry.path().string();
    SCOPED_TRACE(name);
    const auto checkpoint = Checkpoint::open_config_only(entry.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
    const auto& text = checkpoint->text();
    const Words words = Words::of(text.tokenizer_json, text.tokenizer_config.at("eos_token").get<std::string>());

    // A token at the beginning, such that no decoder drops a space of what is compared.
    const auto front = words.tokenizer.encode("x", false).value();
    const std::string front_text = words.tokenizer.decode(front, true).value();
    const auto expect_bytes = [&](const std::vector<std::int32_t>& ids) {
      std::vector<std::int32_t> all = front;
      all.insert(all.end(), ids.begin(), ids.end());
      std::string bytes = front_text;
      for (const std::int32_t id : ids) bytes += words.vocabulary.token_bytes(id);
      const std::string expected = words.tokenizer.decode(all, true).value();
      if (expected.find("\uFFFD") != std::string::npos) return 0;  // half a character, or an added token such as "ü"
      EXPECT_EQ(bytes, expected);
      return 1;
    };
    std::string input = read_file(name + ".inp");
    for (std::size_t at = 0; at < input.size(); ++at) {
      const std::size_t end = std::min(input.find("__ggml_vocab_test__", at), input.size());
      expect_bytes(words.tokenizer.encode(input.substr(at, end - at), false).value());
      at = end + 18;
    }
    int compared = 0;
    for (std::int32_t id = 0; id < words.vocab; id += 7) compared += expect_bytes({id});
    EXPECT_GT(compared, words.vocab / 10);  // of one in seven

    Random random(8);
    const nlohmann::json kinds = {"alpha", "beta", "größer"};
    const nlohmann::json schema = {
        {"type", "object"},
        {"properties", {{"name", {{"type", "string"}, {"maxLength", 20}}}, {"kind", {{"enum", kinds}}}}},
        {"required", {"name", "kind"}},
        {"additionalProperties", false}};
    const Grammar grammar = words.compiled(json_schema(schema));
    for (int i = 0; i < 5; ++i) {
      const Answer answer = walk(words, grammar, random);
      ASSERT_TRUE(answer.ended);
      const auto value = nlohmann::json::parse(answer.text, nullptr, false);
      ASSERT_TRUE(value.is_object() && value.size() == 2) << answer.text;
      EXPECT_EQ(std::ranges::count(kinds, value["kind"]), 1) << answer.text;
    }
  }
  EXPECT_GE(vocabularies, 5);
}

}  // namespace
}  // namespace millrace::test
