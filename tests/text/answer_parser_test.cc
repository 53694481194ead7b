// What holds for every format: nothing is lost, cuts do not matter, long answers take linear time, special tokens stay
// out.

#include "text/answer_parser.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "answers.h"
#include "text/detokenizer.h"
#include "text/special_filter.h"

namespace millrace::test {
namespace {

struct Source {
  const char* name;
  const char* text;
  std::vector<std::string> fragments;  // that mean something to this format
};

const std::vector<Source>& sources() {
  static const std::vector<Source> list = {
      {"hermes", "<tool_call><think>", {"<tool_call>", "</tool_call>", "<think>", "</think>"}},
      {"xml",
       "<function=<parameter=<think>",
       {"<tool_call>", "</tool_call>", "<function=f>", "</function>", "<parameter=p>", "</parameter>", "</think>"}},
      {"pairs",
       "<arg_key><arg_value><think>",
       {"<tool_call>f", "</tool_call>", "<arg_key>k", "</arg_key>", "<arg_value>", "</arg_value>", "<think>"}},
      {"llama", "<|python_tag|>", {"<|python_tag|>", ";", "f.call(", "a=\"", ")"}},
      {"mistral", "[TOOL_CALLS][THINK]", {"[TOOL_CALLS]", "f[ARGS]", "[", "]", "[THINK]", "[/THINK]", "[CALL_ID]x1"}},
      {"glm4", "[gMASK]<|observation|>metadata", {"f\n", "<|observation|>", "<|assistant|>"}},
      {"granite",
       "<|tool_call|><response></response><think>",
       {"<|tool_call|>[", "]", "<think>", "</think>", "<response>"}},
      {"deepseek",
       "<｜tool▁call▁begin｜><think>",
       {"<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "f<｜tool▁sep｜>", "f\n```json\n", "```",
        "<｜tool▁call▁end｜>", "</think>"}},
      {"command_r",
       "<|START_ACTION|><|START_THINKING|><|START_RESPONSE|>",
       {"<|START_ACTION|>[", "]", "<|END_ACTION|>", "<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>"}},
      {"gemma",
       "<|tool_call><tool_call|><channel|>",
       {"<|tool_call>call:f{", "<tool_call|>", "<|\"|>", "k:", "<|channel>thought\n", "<channel|>", "[", "]"}},
      {"harmony",
       "<|channel|><|message|>",
       {"<|start|>assistant", "<|channel|>analysis<|message|>", "<|channel|>commentary to=functions.f<|message|>",
        "<|channel|>final<|message|>", "<|end|>", "<|call|>"}},
  };
  return list;
}

/// Fragments in random order: mostly malformed answers.
std::string random_answer(const Source& source, std::uint32_t& state) {
  static const std::vector<std::string> common = {"{\"name\": \"f\", \"arguments\": {",
                                                  "\"a\": 1",
                                                  "}",
                                                  "}}",
                                                  "{",
                                                  " zebra ",
                                                  "\n",
                                                  " ",
                                                  ", ",
                                                  "é🦙",
                                                  "<",
                                                  "\"x\": \"zebra\"",
                                                  "zebra\n"};
  const auto below = [&](std::size_t n) {
    state = state * 1664525U + 1013904223U;
    return (state >> 8U) % n;
  };
  std::string text;
  for (std::size_t count = 1 + below(14); count > 0; --count) {
    const auto& from = below(2) == 0 ? common : source.fragments;
    text += from[below(from.size())];
  }
  return text;
}

std::size_t zebras(const std::string& text) {
  std::size_t count = 0;
  for (std::size_t at = text.find("zebra"); at != std::string::npos; at = text.find("zebra", at + 1)) ++count;
  return count;
}

TEST(AnswerParser, RandomAnswersLoseNothingHoweverCut) {
  std::uint32_t state = 7;
  for (const Source& source : sources()) {
    const AnswerFormat format = AnswerFormat::detect(source.text, nullptr);
    ASSERT_TRUE(format.has_tools()) << source.name;
    for (int round = 0; round < 4000; ++round) {
      const std::string text = random_answer(source, state);
      const Request request{.tools = round % 5 != 0, .prompt = round % 7 == 0 ? "x <think>\n" : "<|start|>assistant"};
      const Answer whole = parse(format, request, text);
      std::vector<std::size_t> cuts;
      for (std::size_t cut = 1; cut < text.size(); ++cut) {
        if (round % 2 == 0 || (state >> (cut % 24U) & 1U) != 0) cuts.push_back(cut);
      }
      ASSERT_EQ(parse(format, request, text, cuts), whole) << source.name << ": " << text;
      std::string parts = whole.content + '|' + whole.reasoning;
      for (const Call& call : whole.calls) parts += '|' + call.name + '|' + call.arguments;
      // Words of a header are the only ones that are not told.
      if (std::string_view(source.name) == "harmony") continue;
      ASSERT_EQ(zebras(parts), zebras(text)) << source.name << ": " << text << "\n" << testing::PrintToString(whole);
    }
  }
}

TEST(AnswerParser, WithoutToolsEverythingButReasoningIsContent) {
  std::uint32_t state = 11;
  for (const Source& source : sources()) {
    const AnswerFormat format = AnswerFormat::detect(source.text, nullptr);
    if (format.has_reasoning()) continue;
    for (int round = 0; round < 200; ++round) {
      const std::string text = random_answer(source, state);
      ASSERT_EQ(parse(format, {.tools = false}, text), (Answer{text, "", {}})) << source.name;
    }
  }
}

TEST(AnswerParser, ArgumentsStreamAsTheyCome) {
  AnswerParser parser(AnswerFormat::detect("<tool_call>", nullptr), true, "");
  const auto arguments = [&](std::string_view text) {
    const AnswerDelta delta = parser.push(text);
    EXPECT_TRUE(delta.content.empty() && delta.reasoning.empty());
    return delta.tool_calls.empty() ? std::string("-") : delta.tool_calls[0].name + "|" + delta.tool_calls[0].arguments;
  };
  EXPECT_EQ(arguments("<tool_call>\n{\"name\": \"f\""), "-");
  EXPECT_EQ(arguments(", \"arguments\": {"), "f|{");
  EXPECT_EQ(arguments("\"a\": \"wor"), "|\"a\": \"wor");
  EXPECT_TRUE(parser.called_tools());
  EXPECT_EQ(arguments("ds\"}"), "|ds\"}");
  EXPECT_EQ(arguments("}\n</tool_call>"), "-");
  EXPECT_TRUE(parser.finish().empty());
}

TEST(AnswerParser, ContentIsHeldBackOnlyWhereAMarkMayCome) {
  AnswerParser parser(AnswerFormat::detect("<tool_call>", nullptr), true, "");
  EXPECT_EQ(parser.push("Hello").content, "Hello");
  EXPECT_EQ(parser.push(" wor <").content, " wor");
  EXPECT_EQ(parser.push("tool").content, "");
  EXPECT_EQ(parser.push("s>").content, " <tools>");
  EXPECT_EQ(parser.push("\n").content, "");
  EXPECT_EQ(parser.finish().content, "\n");
  EXPECT_FALSE(parser.called_tools());
}

TEST(AnswerParser, MalformedCallsAreContent) {
  const AnswerFormat format = AnswerFormat::detect("<tool_call>", nullptr);
  for (const char* text :
       {"<tool_call>oops</tool_call>", "<tool_call>{\"name\": 3, \"arguments\": {}}</tool_call>",
        "<tool_call>{\"arguments\": {\"a\": 1}}</tool_call>", "a <tool_call>\n{\"name\": \"f\"", "<tool_call>",
        "<tool_call>{\"name\": \"\", \"arguments\": {}}", "<tool_call>[]</tool_call>", "</tool_call>",
        "<tool_call>{\"name\" \"f\"}", "<tool_call>{,}", "<tool_call>{\"name\": \"f\",}"}) {
    EXPECT_EQ(parse_every_way(format, {}, text), (Answer{text, "", {}}));
  }
  EXPECT_EQ(parse_every_way(format, {}, "<tool_call>oops<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>"),
            (Answer{"<tool_call>oops", "", {{"f", "{}"}}}))
      << "the next one counts";
  EXPECT_EQ(parse_every_way(format, {}, "<tool_call>[{\"name\": \"f\", \"arguments\": {}}, what</tool_call>"),
            (Answer{"what</tool_call>", "", {{"f", "{}"}}}));
  EXPECT_EQ(parse_every_way(format, {}, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": tru"),
            (Answer{"", "", {{"f", "{\"a\": tru"}}}));
  EXPECT_EQ(parse_every_way(format, {}, "<tool_call>{\"name\": \"f\", \"arguments\": 12"),
            (Answer{"", "", {{"f", "12"}}}));
  EXPECT_EQ(parse_every_way(format, {}, "<tool_call>{\"name\": \"f\", \"arguments\": {}}\n</tool_c"),
            (Answer{"", "", {{"f", "{}"}}}))
      << "cut off within a mark";
}

TEST(AnswerParser, LongAnswersTakeLinearTime) {
  // Each would take minutes, or all memory, if anything were looked at again and again.
  constexpr std::size_t kSize = 1'000'000;
  const std::string beginnings[] = {"<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"", "<tool_call>{\"b\": [",
                                    ""};
  for (const Source& source : sources()) {
    const AnswerFormat format = AnswerFormat::detect(source.text, nullptr);
    std::vector<std::string> repeated = {"<", "word <tool_call", "[[", "{\"", "\n "};
    repeated.insert(repeated.end(), source.fragments.begin(), source.fragments.end());
    for (const std::string& unit : repeated) {
      AnswerParser parser(format, true, "");
      std::size_t size = 0;
      for (std::size_t pushed = 0; pushed < kSize / 4; pushed += unit.size()) size += parser.push(unit).content.size();
      EXPECT_LE(size + parser.finish().content.size(), 2 * kSize);
    }
  }
  for (const std::string& beginning : beginnings) {
    AnswerParser parser(AnswerFormat::detect("<tool_call>", nullptr), true, "");
    parser.push(beginning);
    for (std::size_t pushed = 0; pushed < kSize; pushed += 5) parser.push("<tool");
    parser.finish();
  }
}

TEST(AnswerParser, HostileNumbersOfBracketsAndEscapes) {
  const AnswerFormat format = AnswerFormat::detect("<tool_call>", nullptr);
  const std::string deep = "{\"a\": " + std::string(100'000, '[') + std::string(100'000, ']') + "}";
  EXPECT_EQ(parse(format, {}, "<tool_call>{\"name\": \"f\", \"arguments\": " + deep + "}</tool_call>"),
            (Answer{"", "", {{"f", deep}}}));
  EXPECT_EQ(parse_every_way(
                format, {},
                R"(<tool_call>{"name": "a\u0062\"\ud83e", "arguments": "\ud83e\udd99\u12\n\q\ud83ex"}</tool_call>)"),
            (Answer{"", "", {{"ab\"\uFFFD", "🦙\uFFFD\nq\uFFFDx"}}}));
}

// ---- special tokens -------------------------------------------------------------------------------------------------

/// A tokenizer of whole words, in which `special` are special tokens.
Tokenizer words(const std::vector<std::string>& plain, const std::vector<std::string>& special) {
  nlohmann::json vocab = nlohmann::json::object(), added = nlohmann::json::array();
  for (const auto* list : {&plain, &special}) {
    for (const std::string& text : *list) {
      const std::size_t id = vocab.size();
      vocab[text] = id;
      if (list == &plain) continue;
      added.push_back({{"id", id},
                       {"content", text},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", true}});
    }
  }
  const nlohmann::json json = {{"version", "1.0"},
                               {"added_tokens", added},
                               {"decoder", {{"type", "Fuse"}}},
                               {"model", {{"type", "WordLevel"}, {"vocab", vocab}, {"unk_token", plain[0]}}}};
  auto tokenizer = Tokenizer::from_json(json.dump());
  EXPECT_TRUE(tokenizer.ok()) << (tokenizer.ok() ? "" : tokenizer.error().message);
  return std::move(tokenizer).value();
}

Answer generate(const Tokenizer& tokenizer, const AnswerFormat& format, const std::vector<std::string>& tokens) {
  Detokenizer detokenizer(tokenizer, !format.special_text());
  AnswerParser parser(format, true, "");
  Answer answer;
  for (const std::string& token : tokens)
    answer.add(parser.push(detokenizer.push(tokenizer.token_to_id(token).value_or(-1))));
  answer.add(parser.push(detokenizer.finish()));
  answer.add(parser.finish());
  return answer;
}

TEST(AnswerSpecialTokens, MarksAreReadAndOthersRemoved) {
  const Tokenizer tokenizer = words(
      {"?", "f", "Hi", "[", "]", R"({"x": 1})", R"([{"name": "f", "arguments": {"s": ")", R"("}}])", "<|eo", "t_id|>"},
      {"[TOOL_CALLS]", "[ARGS]", "<|eot_id|>", "<|eot_id|>2", "[INST]", "</s>"});
  const AnswerFormat format = AnswerFormat::detect("{{ '[TOOL_CALLS]' }}", &tokenizer);
  EXPECT_TRUE(format.special_text());
  EXPECT_EQ(generate(tokenizer, format, {"Hi", "[TOOL_CALLS]", "f", "[ARGS]", R"({"x": 1})", "</s>"}),
            (Answer{"Hi", "", {{"f", R"({"x": 1})"}}}));
  EXPECT_EQ(generate(tokenizer, format, {"[INST]", "Hi", "[", "<|eot_id|>2", "]", "<|eot_id|>", "</s>"}),
            (Answer{"Hi[]", "", {}}));
  EXPECT_EQ(generate(tokenizer, format,
                     {"[TOOL_CALLS]", R"([{"name": "f", "arguments": {"s": ")", "Hi", "[INST]", R"("}}])"}),
            (Answer{"", "", {{"f", R"({"s": "Hi"})"}}}));
  EXPECT_EQ(generate(tokenizer, format, {"Hi", "<|eo", "f"}), (Answer{"Hi<|eof", "", {}}));
}

TEST(AnswerSpecialTokens, OnlyThoseThatAreMarks) {
  const Tokenizer tokenizer =
      words({"?", "<tool_call>", "</tool_call>", R"({"name": "f", "arguments": {}})"}, {"<|im_end|>"});
  const AnswerFormat format = AnswerFormat::detect("<tool_call></tool_call>", &tokenizer);
  EXPECT_FALSE(format.special_text());
  EXPECT_EQ(
      generate(tokenizer, format, {"<tool_call>", R"({"name": "f", "arguments": {}})", "</tool_call>", "<|im_end|>"}),
      (Answer{"", "", {{"f", "{}"}}}));
  EXPECT_TRUE(AnswerFormat::detect("<think></think>", &tokenizer).has_reasoning());
}

TEST(AnswerSpecialTokens, AReasoningTokenCountsAfterContentToo) {
  const Tokenizer tokenizer = words({"?", "Hi ", "so", " you"}, {"<think>", "</think>"});
  const AnswerFormat format = AnswerFormat::detect("<think></think>", &tokenizer);
  EXPECT_EQ(generate(tokenizer, format, {"Hi ", "<think>", "so", "</think>", " you"}), (Answer{"Hi you", "so", {}}));
  EXPECT_EQ(parse_every_way(format, {}, "Hi <think>so</think> you"), (Answer{"Hi you", "so", {}}));
}

TEST(SpecialFilter, RemovesTheLongestTokensInEveryCut) {
  const auto texts =
      std::make_shared<const SpecialTexts>(std::vector<std::string>{"ab", "abcd", "abce", "b", "xx", "<keep>", "é", ""},
                                           std::vector<std::string>{"a <keep> b"});
  const auto filtered = [&](std::string_view text, std::size_t piece) {
    SpecialFilter filter(texts);
    std::string out;
    for (std::size_t at = 0; at < text.size(); at += piece) filter.push(text.substr(at, piece), out);
    filter.finish(out);
    return out;
  };
  const std::pair<const char*, const char*> cases[] = {
      {"abcd", ""},         {"abc", "c"},  {"abcab", "c"},   {"aab", "a"}, {"xxx", "x"}, {"<keep>", "<keep>"},
      {"<<keep", "<<keep"}, {"aéè", "aè"}, {"abcabcd", "c"}, {"", ""},     {"a", "a"}};
  for (const auto& [text, expected] : cases) {
    for (std::size_t piece = 1; piece <= 8; ++piece) EXPECT_EQ(filtered(text, piece), expected) << text << ' ' << piece;
  }
}

}  // namespace
}  // namespace millrace::test
