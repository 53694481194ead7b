#include "text/chat_template.h"

#include "fixtures.h"

namespace millrace::test {
namespace {

using nlohmann::ordered_json;

std::string render(const std::string& source, const ordered_json& context = {{"messages", ordered_json::array()}},
                   const nlohmann::json& config = nlohmann::json::object()) {
  const auto chat = ChatTemplate::create(source, config);
  if (!chat.ok()) return "error: " + chat.error().message;
  const auto text = chat->render(context);
  return text.ok() ? *text : "error: " + text.error().message;
}

TEST(ChatTemplate, DoesWhatJinjaDoesInSmallThings) {
  const auto fixtures = ordered_json::parse(fixture("snippets.json"));
  const auto input = ordered_json::parse(fixture("conversations.json"));
  const auto config = nlohmann::json::parse(input["tokenizer_config"].dump());
  const LocalTime now = fixture_time();
  for (const auto& snippet : fixtures["snippets"]) {
    const std::string source = snippet["template"].get<std::string>();
    const auto chat = ChatTemplate::create(source, config, [&] { return now; });
    const auto text = chat.ok() ? chat->render(fixtures["context"]) : Result<std::string>(chat.error());
    if (snippet.contains("text")) {
      ASSERT_TRUE(text.ok()) << source << "\n" << text.error().message;
      EXPECT_EQ(*text, snippet["text"].get<std::string>()) << source;
    } else {
      ASSERT_FALSE(text.ok()) << source << "\n" << *text;
      if (snippet.contains("message")) {
        EXPECT_EQ(text.error().message, snippet["message"].get<std::string>());
      }
      EXPECT_EQ(text.error().message.find('\n'), std::string::npos) << text.error().message;
    }
  }
}

TEST(ChatTemplate, SpecialTokensAreVariablesAsStringOrObject) {
  const nlohmann::json config = {{"bos_token", "<s>"},
                                 {"eos_token", {{"content", "</s>"}, {"lstrip", false}}},
                                 {"pad_token", nullptr},
                                 {"add_bos_token", true},
                                 {"extra_special_tokens", {{"image_token", "<image>"}}}};
  EXPECT_EQ(render("{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}{{ image_token }}{{ add_bos_token }}",
                   {{"messages", ordered_json::array()}}, config),
            "<s></s>False<image>");
  EXPECT_EQ(render("{{ bos_token }}", {{"messages", ordered_json::array()}, {"bos_token", "own"}}, config), "own");
}

TEST(ChatTemplate, NamedTemplatesAreChosenByTools) {
  const nlohmann::json config = {{"chat_template",
                                  {{{"name", "default"}, {"template", "plain"}},
                                   {{"name", "tool_use"}, {"template", "tools {{ tools|length }}"}}}}};
  const ordered_json with_tools = {{"messages", ordered_json::array()}, {"tools", {{{"name", "f"}}}}};
  const ordered_json without = {{"messages", ordered_json::array()}};
  EXPECT_EQ(render("", without, config), "plain");
  EXPECT_EQ(render("", with_tools, config), "tools 1");
  EXPECT_EQ(render("plain", with_tools, config), "tools 1") << "the default given as source is still the list's";
  EXPECT_EQ(render("from a file", with_tools, config), "from a file");
  EXPECT_EQ(render("", without, {{"chat_template", "a string"}}), "a string");
}

TEST(ChatTemplate, WhatTransformersDoesToMessages) {
  const ordered_json context = {{"messages",
                                 {{{"role", "assistant"}, {"content", nullptr}, {"reasoning", "r"}},
                                  {{"role", "user"}, {"thinking", "t"}, {"content", "c"}}}}};
  EXPECT_EQ(render("{% for m in messages %}{{ m|tojson }}\n{% endfor %}", context),
            "{\"thinking\": \"r\", \"role\": \"assistant\", \"reasoning\": \"r\", \"reasoning_content\": \"r\"}\n"
            "{\"thinking\": \"t\", \"role\": \"user\", \"content\": \"c\", \"reasoning_content\": \"t\"}\n");
  EXPECT_EQ(render("{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}"), "TrueTrueFalse");
}

TEST(ChatTemplate, RenderMessagesAsksForAnAnswer) {
  const auto chat = ChatTemplate::create("{{ messages[0].content }}{{ '!' if add_generation_prompt }}", {});
  ASSERT_TRUE(chat.ok());
  EXPECT_EQ(chat->render_messages(R"([{"role": "user", "content": "é"}])").value(), "é!");
  EXPECT_EQ(chat->render_messages("[{").error().message, "the messages are not JSON");
  EXPECT_EQ(chat->render_messages("3").error().message, "messages: expected a list");
  EXPECT_EQ(chat->render_messages("[3]").error().message, "messages: each message must be an object");
}

TEST(ChatTemplate, TellsTheTime) {
  const auto chat = ChatTemplate::create("{{ strftime_now('%d %b %Y %H:%M:%S.%f%z') }}", {}, fixture_time);
  ASSERT_TRUE(chat.ok());
  EXPECT_EQ(chat->render_messages("[]").value(), "05 Jul 2024 14:03:09.123456");
  const auto real = ChatTemplate::create("{{ strftime_now('%Y') }}", {});
  EXPECT_GE(std::stoi(real->render_messages("[]").value()), 2024);
}

TEST(ChatTemplate, ErrorsAreOneLineWithThePlace) {
  EXPECT_EQ(ChatTemplate::create("", {}).error().message,
            "no chat template: expected a Jinja text, or one named \"default\"");
  const std::string syntax = ChatTemplate::create("a\n{% if %}\nb", {}).error().message;
  EXPECT_EQ(syntax.find("chat template, line 2: syntax error"), 0U) << syntax;
  EXPECT_EQ(render("a\n\n{{ nothing.at.all }}").find("error: chat template, line 3: "), 0U);
  EXPECT_FALSE(ChatTemplate::create("\xff", {}).ok());
  EXPECT_FALSE(ChatTemplate::create("x", {{"bos_token", "\xff"}}).ok());
  EXPECT_NE(render("x", {{"messages", {{{"content", "\xff"}}}}}).find("not UTF-8"), std::string::npos);
}

TEST(ChatTemplate, HostileTemplatesEnd) {
  const char* hostile[] = {
      "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x{% endfor %}{% endfor %}{% "
      "endfor %}",
      "{{ 'x' * 999999999999 }}",
      "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
      "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
      "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x|tojson }}",
      "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}",
      "{{ 'x'.zfill(99999999999) }}",
      "{{ 'x'.center(99999999999) }}",
      "{{ 'x'|indent(99999999999) }}",
      "{{ strftime_now('%' * 100) }}",
  };
  for (const char* source : hostile) {
    const std::string text = render(source);
    EXPECT_LT(text.size(), 1'000'000U) << source;
  }
  const std::string nested = std::string(100'000, '(') + "1" + std::string(100'000, ')');
  EXPECT_FALSE(ChatTemplate::create("{{ " + nested + " }}", {}).ok());
}

}  // namespace
}  // namespace millrace::test
