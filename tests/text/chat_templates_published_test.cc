// The chat templates of published models render as transformers renders them, character for character. The templates
// are their publishers' and not part of this project: they are read from ../shared/data/templates where that is there.

#include <filesystem>

#include "fixtures.h"

namespace millrace::test {
namespace {

TEST(ChatTemplatesPublished, RenderAsTransformersDoes) {
  const std::filesystem::path directory =
      std::filesystem::path(MILLRACE_SOURCE_DIR) / ".." / "shared" / "data" / "templates";
  if (!std::filesystem::is_directory(directory)) GTEST_SKIP() << "no templates in " << directory;

  const auto input = nlohmann::ordered_json::parse(fixture("conversations.json"));
  const auto config = nlohmann::json::parse(input["tokenizer_config"].dump());
  const auto expected = nlohmann::ordered_json::parse(fixture("chat_templates.json"));
  const LocalTime now = fixture_time();
  for (const auto& [name, rows] : expected.items()) {
    const auto chat = ChatTemplate::create(read_file((directory / name).string()), config, [&] { return now; });
    ASSERT_TRUE(chat.ok()) << name << ": " << chat.error().message;
    ASSERT_EQ(rows.size(), input["conversations"].size()) << name;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto& conversation = input["conversations"][i];
      const auto text = chat->render(conversation["context"]);
      const std::string where = name + ", " + conversation["name"].get<std::string>();
      if (rows[i].is_null()) {
        EXPECT_FALSE(text.ok()) << where << " should be an error, but is:\n" << *text;
        continue;
      }
      ASSERT_TRUE(text.ok()) << where << ": " << text.error().message;
      const bool same = text->size() == rows[i][0].get<std::size_t>() &&
                        fmt::format("{:016x}", hash64(*text)) == rows[i][1].get<std::string>();
      EXPECT_TRUE(same) << where << " differs (expected " << rows[i][0] << " bytes, got " << text->size() << "):\n"
                        << *text;
    }
  }
}

}  // namespace
}  // namespace millrace::test
