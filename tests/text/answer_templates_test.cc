// What published templates make of an assistant's message, the parser takes apart again. The templates are their
// publishers' and not part of this project: they are read from ../shared/data/templates where that is there.

#include <filesystem>
#include <optional>

#include "answers.h"
#include "fixtures.h"

namespace millrace::test {
namespace {

using nlohmann::ordered_json;

struct Published {
  const char* file;
  bool tools, reasoning;
  int parallel = 2;                             // calls in a message
  bool reasons_before_calls = false;            // the template writes the reasoning of a message that has calls
  std::string_view content = "Ich prüfe das.";  // beside calls; empty: the template has no place for it
};

const Published kPublished[] = {
    {"CohereForAI-c4ai-command-r7b-12-2024-tool_use.jinja", true, true, 2, true, ""},
    {"GLM-4.6.jinja", true, true, 2, true},
    {"HuggingFaceTB-SmolLM3-3B.jinja", false, true},
    {"NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja", true, false, 2, false, ""},
    {"Qwen-Qwen2.5-7B-Instruct.jinja", true, false},
    {"Qwen-Qwen3-0.6B.jinja", true, true, 2, true},
    {"deepseek-ai-DeepSeek-V3.1.jinja", true, true},
    {"google-gemma-2-2b-it.jinja", false, false},
    {"meta-llama-Llama-3.1-8B-Instruct.jinja", true, false, 1, false, ""},
    {"microsoft-Phi-3.5-mini-instruct.jinja", false, false},
    {"mistralai-Mistral-Nemo-Instruct-2407.jinja", true, false, 2, false, ""},
    {"openai-gpt-oss-120b.jinja", true, true, 1, true, ""},
};

const char* const kArguments[] = {
    R"({"city": "Köln <b>\"x\"</b>", "days": 3, "deep": {"list": [1, {"a": null}], "s": "}]</tool_call>{"}, "ok": true})",
    R"({"text": "two\nlines\t\\ 🦙 <think>"})"};

/// The template's rendering of an assistant's message after a question, without what ends the turn.
std::optional<std::string> rendered_answer(const ChatTemplate& chat, const ordered_json& message, std::string& prompt) {
  const ordered_json question = {{"role", "user"}, {"content", "How is the weather?"}};
  ordered_json properties = {{"city", {{"type", "string"}, {"description", "d"}}}};
  const ordered_json tool = {{"type", "function"},
                             {"function",
                              {{"name", "get_weather"},
                               {"description", "d"},
                               {"parameters", {{"type", "object"}, {"properties", properties}}}}}};
  ordered_json context = {{"messages", {question}}, {"tools", {tool}}, {"add_generation_prompt", true}};
  const auto before = chat.render(context);
  EXPECT_TRUE(before.ok()) << (before.ok() ? "" : before.error().message);
  context["messages"].push_back(message);
  context["add_generation_prompt"] = false;
  const auto whole = chat.render(context);
  EXPECT_TRUE(whole.ok()) << (whole.ok() ? "" : whole.error().message);
  if (!before.ok() || !whole.ok()) return std::nullopt;
  // A prompt may end with reasoning that is already closed or opened, where the message has some.
  prompt = *before;
  for (const char* marks : {"<|START_THINKING|><|END_THINKING|>", "<think></think>"}) {
    if (!whole->starts_with(prompt) && prompt.ends_with(marks))
      prompt.resize(prompt.size() - std::string_view(marks).size());
  }
  std::string common = prompt;
  while (!whole->starts_with(common)) common.pop_back();
  EXPECT_GE(common.size() + 2, prompt.size()) << "the rendering does not continue the prompt:\n" << *whole;
  std::string answer = whole->substr(common.size());
  for (const char* end : {"<|im_end|>\n", "<|END_OF_TURN_TOKEN|>", "<|eot_id|>", "</s>", "<｜end▁of▁sentence｜>",
                          "<end_of_turn>\n", "<|end|>\n"}) {
    const std::size_t at = answer.find(end);
    if (at != std::string::npos) answer.resize(at);
  }
  return answer;
}

class AnswersPublished : public testing::TestWithParam<Published> {
 protected:
  void SetUp() override {
    const auto path =
        std::filesystem::path(MILLRACE_SOURCE_DIR) / ".." / "shared" / "data" / "templates" / GetParam().file;
    if (!std::filesystem::exists(path)) GTEST_SKIP() << "no template at " << path;
    source_ = read_file(path.string());
    const nlohmann::json config = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};
    auto made = ChatTemplate::create(source_, config, fixture_time);
    ASSERT_TRUE(made.ok()) << made.error().message;
    chat_.emplace(std::move(made).value());
  }

  std::string source_;
  std::optional<ChatTemplate> chat_;
};

TEST_P(AnswersPublished, CallsComeBack) {
  const Published& published = GetParam();
  const AnswerFormat format = AnswerFormat::detect(source_, nullptr);
  EXPECT_EQ(format.has_tools(), published.tools);
  EXPECT_EQ(format.has_reasoning(), published.reasoning);
  if (!published.tools) return;

  ordered_json message = {{"role", "assistant"}, {"content", published.content}, {"tool_calls", ordered_json::array()}};
  if (published.reasons_before_calls) message["reasoning_content"] = "I need data.";
  // gpt-oss reads the reasoning of a message from another key.
  if (format.harmony()) message["thinking"] = "I need data.";
  Answer expected{std::string(published.content), published.reasons_before_calls ? "I need data." : "", {}};
  for (int i = 0; i < published.parallel; ++i) {
    const ordered_json arguments = ordered_json::parse(kArguments[i]);
    const std::string name = i == 0 ? "get_weather" : "say";
    message["tool_calls"].push_back({{"type", "function"},
                                     {"id", i == 0 ? "abcdefgh1" : "abcdefgh2"},
                                     {"function", {{"name", name}, {"arguments", arguments}}}});
    expected.calls.push_back({name, arguments.dump()});
  }
  std::string prompt;
  const auto text = rendered_answer(*chat_, message, prompt);
  ASSERT_TRUE(text.has_value());
  Answer answer = parse_every_way(format, {.prompt = prompt}, *text);
  for (Call& call : answer.calls) {
    const ordered_json arguments = ordered_json::parse(call.arguments, nullptr, false);
    ASSERT_FALSE(arguments.is_discarded()) << call.arguments;
    call.arguments = arguments.dump();
  }
  EXPECT_EQ(answer, expected) << *text;
}

TEST_P(AnswersPublished, ContentComesBack) {
  const AnswerFormat format = AnswerFormat::detect(source_, nullptr);
  const ordered_json message = {{"role", "assistant"}, {"content", "It is {\"sunny\"} <b>, mostly.\n\n1 < 2."}};
  std::string prompt;
  const auto text = rendered_answer(*chat_, message, prompt);
  ASSERT_TRUE(text.has_value());
  EXPECT_EQ(parse_every_way(format, {.prompt = prompt}, *text), (Answer{message["content"].get<std::string>(), "", {}}))
      << *text;
}

INSTANTIATE_TEST_SUITE_P(All, AnswersPublished, testing::ValuesIn(kPublished), [](const auto& published) {
  std::string name = published.param.file;
  std::erase_if(name, [](char c) { return std::isalnum(static_cast<unsigned char>(c)) == 0; });
  return name;
});

}  // namespace
}  // namespace millrace::test
