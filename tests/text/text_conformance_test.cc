// Token for token what PyPI tokenizers gives, on 10,000 lines of mixed-script Unicode, for the three kinds of
// tokenizer; its decoding of them; and streaming equal to decoding at once. Expected: tests/fixtures/text, by
// text_fixtures.py.

#include <cstring>

#include "fixtures.h"
#include "lines.h"
#include "text/detokenizer.h"

namespace millrace::test {
namespace {

constexpr std::uint64_t kLines = 10'000;

std::string as_bytes(const std::vector<std::int32_t>& ids) {
  std::string bytes(ids.size() * sizeof(std::int32_t), '\0');
  if (!ids.empty()) std::memcpy(bytes.data(), ids.data(), bytes.size());
  return bytes;
}

/// True where `text` is UTF-8 and so holds no half character: json refuses to write any other.
bool whole_characters(const std::string& text) {
  try {
    return !nlohmann::json(text).dump().empty();
  } catch (const nlohmann::json::type_error&) {
    return false;
  }
}

class TextConformance : public testing::TestWithParam<const char*> {};

TEST_P(TextConformance, EqualsPypiTokenizersOnMixedScripts) {
  const std::string kind = GetParam();
  const Tokenizer tokenizer = fixture_tokenizer(kind);
  const Lines lines(nlohmann::json::parse(fixture("pieces.json")));
  const auto shown = nlohmann::json::parse(fixture(kind + "/shown.json"));
  const std::string hashes = fixture(kind + "/hashes.bin");
  ASSERT_EQ(hashes.size(), kLines * sizeof(std::uint32_t));

  int wrong = 0;
  for (std::uint64_t number = 0; number < kLines && wrong < 5; ++number) {
    const std::string text = lines.line(number);
    const auto ids = tokenizer.encode(text, true);
    ASSERT_TRUE(ids.ok()) << "line " << number << ": " << ids.error().message;
    const auto decoded = tokenizer.decode(*ids, true);
    ASSERT_TRUE(decoded.ok()) << "line " << number << ": " << decoded.error().message;
    if (number < shown.size()) {
      EXPECT_EQ(*ids, shown[number]["ids"].get<std::vector<std::int32_t>>()) << "line " << number << ": " << text;
      EXPECT_EQ(*decoded, shown[number]["decoded"].get<std::string>()) << "line " << number << ": " << text;
    }
    std::uint32_t expected = 0;
    std::memcpy(&expected, hashes.data() + number * sizeof expected, sizeof expected);
    if (hash32(as_bytes(*ids) + *decoded) != expected) {
      ++wrong;
      ADD_FAILURE() << "line " << number << " differs: " << text << "\nids " << nlohmann::json(*ids).dump();
    }
  }
}

TEST_P(TextConformance, StreamingEqualsDecodingAtOnce) {
  const Tokenizer tokenizer = fixture_tokenizer(GetParam());
  std::vector<std::int32_t> special;
  for (const std::string& token : Detokenizer::special_tokens(tokenizer)) {
    special.push_back(tokenizer.token_to_id(token).value());
  }
  ASSERT_FALSE(special.empty());
  const Lines lines(nlohmann::json::parse(fixture("pieces.json")));
  for (std::uint64_t number = 0; number < kLines; ++number) {
    auto ids = tokenizer.encode(lines.line(number), true).value();
    // Every third line loses a part of its tokens, so that characters are cut and bytes stand alone.
    if (number % 3 == 0)
      std::erase_if(ids, [&](std::int32_t id) { return (id + static_cast<std::int64_t>(number)) % 5 == 0; });
    // Every other line has a special token at its end and somewhere within.
    if (number % 2 == 0) {
      ids.push_back(special[number % special.size()]);
      ids.insert(ids.begin() + static_cast<std::ptrdiff_t>(number * 7 % ids.size()),
                 special[number / 2 % special.size()]);
    }
    const bool skip = number % 4 < 2;
    Detokenizer detokenizer(tokenizer, skip);
    std::string streamed;
    for (const std::int32_t id : ids) {
      const std::string piece = detokenizer.push(id);
      ASSERT_TRUE(whole_characters(piece)) << "line " << number;
      streamed += piece;
    }
    streamed += detokenizer.finish();
    ASSERT_EQ(streamed, tokenizer.decode(ids, skip).value()) << "line " << number << ' ' << nlohmann::json(ids).dump();
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, TextConformance, testing::Values("byte_level_bpe", "spm_bpe", "unigram"),
                         [](const auto& kind) { return std::string(kind.param); });

}  // namespace
}  // namespace millrace::test
