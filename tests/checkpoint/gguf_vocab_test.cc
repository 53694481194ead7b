// GGUF vocabularies give llama.cpp's ids: its test vectors, read from ../shared/data/tokenizers where they are there.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "model/checkpoint/checkpoint.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace millrace {
namespace {

std::string read_all(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<std::string> split(const std::string& text, const std::string& separator) {
  std::vector<std::string> parts;
  std::size_t from = 0;
  for (std::size_t at = 0; (at = text.find(separator, from)) != std::string::npos; from = at + separator.size()) {
    parts.push_back(text.substr(from, at - from));
  }
  if (from < text.size()) parts.push_back(text.substr(from));
  return parts;
}

TEST(GgufVocabVectors, GiveTheIdsOfLlamaCpp) {
  const auto directory = std::filesystem::path(MILLRACE_SOURCE_DIR) / ".." / "shared" / "data" / "tokenizers";
  if (!std::filesystem::is_directory(directory)) GTEST_SKIP() << "no vocabularies in " << directory;
  int vocabularies = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.path().extension() != ".gguf") continue;
    ++vocabularies;
    const std::string name = entry.path().string();
    const auto checkpoint =
        Checkpoint::open_config_only(entry.path());  // any architecture: only its texts are asked for
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
    const auto tokenizer = Tokenizer::from_json(checkpoint->text().tokenizer_json);
    ASSERT_TRUE(tokenizer.ok()) << name << ": " << tokenizer.error().message;

    const auto inputs = split(read_all(name + ".inp"), "\n__ggml_vocab_test__\n");
    const auto outputs = split(read_all(name + ".out"), "\n");
    ASSERT_EQ(inputs.size(), outputs.size()) << name;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      std::istringstream line(outputs[i]);
      const std::vector<std::int32_t> expected{std::istream_iterator<std::int32_t>(line), {}};
      const auto ids = tokenizer->encode(inputs[i], false);
      ASSERT_TRUE(ids.ok()) << name << ": " << ids.error().message;
      EXPECT_EQ(*ids, expected) << name << ", case " << i << ": \"" << inputs[i] << '"';
      Detokenizer detokenizer(*tokenizer);
      std::string streamed;
      for (const std::int32_t id : *ids) streamed += detokenizer.push(id);
      streamed += detokenizer.finish();
      EXPECT_EQ(streamed, tokenizer->decode(*ids, true).value()) << name << ", case " << i;
    }
  }
  EXPECT_GE(vocabularies, 5);
}

}  // namespace
}  // namespace millrace
