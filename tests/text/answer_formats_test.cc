// Realistic answers in each format that a chat template can ask for, in every cut.

#include "answers.h"

namespace millrace::test {
namespace {

// What the templates of the families say about calls and reasoning, no more.
constexpr const char* kHermes = R"({{ '<tool_call>\n{"name": <function-name>, "arguments": <args>}\n</tool_call>' }})";
constexpr const char* kQwen3 = "{{ '<tool_call>' }}{{ content.split('</think>')[-1] }}{{ '<think>\n\n</think>\n\n' }}";
constexpr const char* kQwen3Coder = "<tool_call>\n<function=example>\n<parameter=p>\nv\n</parameter>";
constexpr const char* kLlama =
    R"(Respond in the format {"name": function name, "parameters": dictionary}. <|python_tag|>)";
constexpr const char* kMistral = "{{ '[TOOL_CALLS]' + name + '[ARGS]' }}[THINK]";
constexpr const char* kHarmony = "<|start|>assistant<|channel|>analysis<|message|>";
constexpr const char* kGlm45 =
    "<tool_call>{name}\n<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value></tool_call><think></think>";
constexpr const char* kGlm4 = "[gMASK]<sop>{{ meta or message.get('metadata') }}<|observation|>";
constexpr const char* kGranite =
    "respond only with <|tool_call|> followed by a JSON list; <think></think> and <response></response>";
constexpr const char* kPhi4Mini = "{{ '<|tool|>' + message['tools'] + '<|/tool|>' }}";
constexpr const char* kDeepSeek = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ name }}<｜tool▁sep｜><think></think>";
constexpr const char* kCommandR = "<|START_THINKING|><|END_THINKING|><|START_ACTION|><|END_ACTION|><|START_RESPONSE|>";
constexpr const char* kGemma4 =
    R"(<|tool_call>call:{{ name }}{ {{ key }}:<|"|>{{ value }}<|"|>}<tool_call|><|channel>thought)";

Answer parse(const char* source, std::string_view text, const Request& request = {}) {
  return parse_every_way(AnswerFormat::detect(source, nullptr), request, text);
}

TEST(AnswerFormats, Hermes) {
  EXPECT_EQ(parse(kHermes,
                  "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}}\n"
                  "</tool_call>"),
            (Answer{"", "", {{"get_weather", R"({"city": "Köln", "days": 3})"}}}));
  EXPECT_EQ(parse(kHermes,
                  "I will look.\n\n<tool_call>\n{\"name\": \"a\", \"arguments\": {}}\n</tool_call>\n"
                  "<tool_call>\n{\"arguments\": {\"x\": {\"y\": [1, {\"z\": \"}\"}]}}, \"name\": \"b\"}\n"
                  "</tool_call>\n<tool_call>{\"name\": \"c\"}</tool_call>\n"),
            (Answer{"I will look.", "", {{"a", "{}"}, {"b", R"({"x": {"y": [1, {"z": "}"}]}})"}, {"c", "{}"}}}));
  EXPECT_EQ(parse(kHermes,
                  "<tool_call>{\"name\": \"say\", \"arguments\": {\"text\": \"<tool_call>{\\\"a\\\"}</tool_call> "
                  "🦙 \\u00e9\\n\"}}</tool_call> Done; 1 < 2."),
            (Answer{"Done; 1 < 2.", "", {{"say", R"({"text": "<tool_call>{\"a\"}</tool_call> 🦙 \u00e9\n"})"}}}));
  EXPECT_EQ(parse(kHermes,
                  "One\n<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": \\\"\\\\u00e9\\ud83e\\udd99\\\"}"
                  "\"}</tool_call>\nTwo"),
            (Answer{"One\nTwo", "", {{"f", "{\"a\": \"\\u00e9🦙\"}"}}}))
      << "arguments that are JSON in a string";
  EXPECT_EQ(parse(kHermes,
                  "<tool_call>\n[{\"name\": \"a\", \"parameters\": {}}, {\"name\": \"b\", \"arguments\": null}]\n"
                  "</tool_call>"),
            (Answer{"", "", {{"a", "{}"}, {"b", "{}"}}}));
  EXPECT_EQ(parse(kHermes,
                  "<tool_call>{\"name\": \"a\", \"arguments\": {}}\n{\"name\": \"b\", \"arguments\": {}}</tool_call>"),
            (Answer{"", "", {{"a", "{}"}, {"b", "{}"}}}));
  EXPECT_EQ(parse(kHermes, "<tool_call>{\"name\": \"run\", \"arguments\": {\"code\": \"a\n\tb\"}}</tool_call>"),
            (Answer{"", "", {{"run", R"({"code": "a\n\tb"})"}}}))
      << "a newline in a string becomes an escape";
}

TEST(AnswerFormats, ThinkOpenedByModelOrPrompt) {
  const std::string thinks = "\nThe user wants <b>.\n\nSo:\n</think>\n\nHello!\n";
  EXPECT_EQ(parse(kQwen3, "<think>" + thinks), (Answer{"Hello!\n", "The user wants <b>.\n\nSo:", {}}));
  EXPECT_EQ(parse(kQwen3, thinks, {.prompt = "<|im_start|>assistant\n<think>\n"}),
            (Answer{"Hello!\n", "The user wants <b>.\n\nSo:", {}}));
  EXPECT_EQ(parse(kQwen3, "<think>" + thinks, {.tools = false, .prompt = "assistant\n<think>\n"}),
            (Answer{"Hello!\n", "The user wants <b>.\n\nSo:", {}}))
      << "opened by both";
  EXPECT_EQ(parse(kQwen3, "Hello!", {.prompt = "assistant\n<think>\n\n</think>\n\n"}), (Answer{"Hello!", "", {}}));
  EXPECT_EQ(parse(kQwen3, "<think>\n\n</think>\n\nHello!"), (Answer{"Hello!", "", {}}));
  EXPECT_EQ(parse(kQwen3, "Use <think> and </think>."), (Answer{"Use <think> and </think>.", "", {}}));
  EXPECT_EQ(parse(kQwen3, "<think>a</think>\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>"),
            (Answer{"", "a", {{"f", "{}"}}}));
  EXPECT_EQ(
      parse(kQwen3, "<think>a</think>\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>", {.tools = false}),
      (Answer{"<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>", "a", {}}));
  EXPECT_EQ(parse(kQwen3, "<think>I still th"), (Answer{"", "I still th", {}})) << "cut off by its length";
  EXPECT_EQ(parse(kQwen3, "  x \n"), (Answer{"  x \n", "", {}}));
}

TEST(AnswerFormats, Qwen3CoderXml) {
  const char* text =
      "I'll write it.\n<tool_call>\n<function=write>\n<parameter=path>\na \"b\".py\n</parameter>\n<parameter=text>\n"
      "if a < b:\n    print(\"</p>\")\n\n</parameter>\n<parameter=mode>\n420\n</parameter>\n<parameter=o>\n"
      "{\"deep\": [1, null]}\n</parameter>\n</function>\n</tool_call>";
  const Answer expected{"I'll write it.",
                        "",
                        {{"write", R"({"path": "a \"b\".py", "text": "if a < b:\n    print(\"</p>\")\n", "mode": 420, )"
                                   R"("o": {"deep": [1, null]}})"}}};
  EXPECT_EQ(parse(kQwen3Coder, text), expected);

  const char* tools =
      R"([{"type": "function", "function": {"name": "write", "parameters": {"type": "object", "properties":
      {"mode": {"type": "string"}, "path": {"type": "string"}, "o": {"type": "object"}, "b": {"type": "boolean"}}}}}])";
  EXPECT_EQ(
      parse(kQwen3Coder, "<function=write><parameter=mode>420</parameter><parameter=b>True</parameter></function>",
            {.tools_json = tools}),
      (Answer{"", "", {{"write", R"({"mode": "420", "b": true})"}}}))
      << "with the types that the request declares, and without the outer mark";
  EXPECT_EQ(parse(kQwen3Coder,
                  "<tool_call><function=a></function></tool_call>\n<tool_call>\n<function=b>\n"
                  "<parameter=x>\n\n</parameter>\n</tool_call>"),
            (Answer{"", "", {{"a", "{}"}, {"b", R"({"x": ""})"}}}));
  EXPECT_EQ(parse(kQwen3Coder, "<tool_call>\n<function=f>\n<parameter=text>\nas far as"),
            (Answer{"", "", {{"f", R"({"text": "as far as)"}}}));
  EXPECT_EQ(parse(kQwen3Coder, "<tool_call>\n<function=f>\n<parameter=n>\n12"),
            (Answer{"", "", {{"f", R"({"n": 12)"}}}));
  EXPECT_EQ(parse(kQwen3Coder, "<tool_call>\n<function=f>\n<param"),
            (Answer{"<tool_call>\n<function=f>\n<param", "", {}}));
  EXPECT_EQ(parse(kQwen3Coder, "<tool_call>\n<function=f>\n<parameter=na"), (Answer{"", "", {{"f", R"({"na)"}}}));
}

TEST(AnswerFormats, Llama) {
  EXPECT_EQ(parse(kLlama, R"({"name": "get_weather", "parameters": {"city": "Paris"}})"),
            (Answer{"", "", {{"get_weather", R"({"city": "Paris"})"}}}));
  EXPECT_EQ(
      parse(kLlama, R"({"type": "function", "name": "a", "parameters": {}}; {"name": "b", "parameters": {"x": 1}})"),
      (Answer{"", "", {{"a", "{}"}, {"b", R"({"x": 1})"}}}));
  EXPECT_EQ(parse(kLlama, R"(<|python_tag|>{"name": "a", "parameters": {"s": "{"}})"),
            (Answer{"", "", {{"a", R"({"s": "{"})"}}}));
  EXPECT_EQ(parse(kLlama, R"(<|python_tag|>brave_search.call(query="rain, (Köln) 'now'", n=3))"),
            (Answer{"", "", {{"brave_search", R"({"query": "rain, (Köln) 'now'", "n": 3})"}}}));
  EXPECT_EQ(parse(kLlama, R"({"name": "Bob", "age": 7})"), (Answer{R"({"name": "Bob", "age": 7})", "", {}}))
      << "an answer that is JSON, but no call";
  EXPECT_EQ(parse(kLlama, " \n{\"a\": 1} "), (Answer{" \n{\"a\": 1} ", "", {}}));
  EXPECT_EQ(parse(kLlama, R"({"name": "f", "parameters": "x"})"),
            (Answer{R"({"name": "f", "parameters": "x"})", "", {}}));
  EXPECT_EQ(parse(kLlama, R"(Call {"name": "f", "parameters": {}})"),
            (Answer{R"(Call {"name": "f", "parameters": {}})", "", {}}))
      << "within a text it is an example";
  EXPECT_EQ(parse(kLlama, R"({"name": "f", "parameters": {}})", {.tools = false}),
            (Answer{R"({"name": "f", "parameters": {}})", "", {}}));
  EXPECT_EQ(parse(kLlama, "<|python_tag|>print(1)"), (Answer{"<|python_tag|>print(1)", "", {}}));
  EXPECT_EQ(parse(kLlama, R"({"name": "f", "parameters": {}}; then)"), (Answer{"; then", "", {{"f", "{}"}}}));
}

TEST(AnswerFormats, Mistral) {
  EXPECT_EQ(
      parse(
          kMistral,
          R"([TOOL_CALLS][{"name": "a", "arguments": {"x": "]"}, "id": "abcdefghi"}, {"name": "b", "arguments": {}}])"),
      (Answer{"", "", {{"a", R"({"x": "]"})"}, {"b", "{}"}}}));
  EXPECT_EQ(parse(kMistral, R"(Sure. [TOOL_CALLS]a[ARGS]{"x": "[TOOL_CALLS]"}[TOOL_CALLS]b[CALL_ID]abcdefghi[ARGS]{})"),
            (Answer{"Sure.", "", {{"a", R"({"x": "[TOOL_CALLS]"})"}, {"b", "{}"}}}));
  EXPECT_EQ(parse(kMistral, R"([TOOL_CALLS] a{"x": 1})"), (Answer{"", "", {{"a", R"({"x": 1})"}}}));
  EXPECT_EQ(parse(kMistral, "[THINK]Hm [x].[/THINK]An [answer]"), (Answer{"An [answer]", "Hm [x].", {}}));
  EXPECT_EQ(parse(kMistral, "[TOOL_CALLS]a b[ARGS]{}"), (Answer{"[TOOL_CALLS]a b[ARGS]{}", "", {}}));
  EXPECT_EQ(parse(kMistral, R"([TOOL_CALLS][{"name": "a", "arguments": {"x": "y)"),
            (Answer{"", "", {{"a", R"({"x": "y)"}}}));
}

TEST(AnswerFormats, Harmony) {
  const Request request{.prompt = "<|start|>user<|message|>Hi<|end|><|start|>assistant"};
  EXPECT_EQ(parse(kHarmony,
                  "<|channel|>analysis<|message|>Need <weather>.<|end|><|start|>assistant<|channel|>commentary "
                  "to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"<|call|>\"}<|call|>",
                  request),
            (Answer{"", "Need <weather>.", {{"get_weather", R"({"city": "<|call|>"})"}}}));
  EXPECT_EQ(parse(kHarmony,
                  "<|channel|>commentary<|message|>First this. <|end|><|start|>assistant to=functions.a<|channel|>"
                  "commentary json<|message|>{}<|call|><|start|>assistant<|channel|>commentary to=functions.b"
                  "<|message|> <|call|><|start|>assistant<|channel|>final<|message|>Done.<|return|>",
                  request),
            (Answer{"First this. Done.", "", {{"a", "{}"}, {"b", "{}"}}}));
  EXPECT_EQ(parse(kHarmony, "<|channel|>final<|message|>to=you, as <|this|>", request),
            (Answer{"to=you, as <|this|>", "", {}}));
  EXPECT_EQ(parse(kHarmony, "Hello", {.prompt = "<|start|>assistant<|channel|>final<|message|>"}),
            (Answer{"Hello", "", {}}));
  EXPECT_EQ(parse(kHarmony, "Hello", request), (Answer{"Hello", "", {}})) << "a model that drops the format";
  EXPECT_EQ(parse(kHarmony, "<|channel|>analysis<|message|>cut o", request), (Answer{"", "cut o", {}}));
  EXPECT_EQ(parse(kHarmony, "<|channel|>analysis<|message|>a<|end|><|start|>assis", request), (Answer{"", "a", {}}));
  EXPECT_EQ(parse(kHarmony, "<|channel|>analysis to=python<|message|>print(1)\n<|call|>", request),
            (Answer{"", "", {{"python", "print(1)"}}}));
  EXPECT_EQ(parse(kHarmony, "<|channel|>commentary to=functions.a<|message|>{\"x\": ", request),
            (Answer{"", "", {{"a", "{\"x\": "}}}));
  EXPECT_EQ(parse(kHarmony, "<|channel|>commentary to=functions.a<|message|>{}<|call|>",
                  {.tools = false, .prompt = request.prompt}),
            (Answer{"<|channel|>commentary to=functions.a<|message|>{}<|call|>", "", {}}));
}

TEST(AnswerFormats, Glm) {
  EXPECT_EQ(
      parse(kGlm45,
            "\n<think>Look it up.</think>\nOne moment.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n"
            "<arg_value>北京 \"x\"</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n"
            "<tool_call>now</tool_call>"),
      (Answer{"One moment.", "Look it up.", {{"get_weather", R"({"city": "北京 \"x\"", "days": 3})"}, {"now", "{}"}}}));
  EXPECT_EQ(parse(kGlm45,
                  "<tool_call>f<arg_key>a</arg_key><arg_value>[1, 2]</arg_value><arg_key>b</arg_key><arg_value>tall"
                  "</arg_value></tool_call>"),
            (Answer{"", "", {{"f", R"({"a": [1, 2], "b": "tall"})"}}}));
  EXPECT_EQ(parse(kGlm45, "<tool_call>a mark of GLM"), (Answer{"<tool_call>a mark of GLM", "", {}}));
  EXPECT_EQ(parse(kGlm45, "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>x y"),
            (Answer{"", "", {{"f", R"({"a": "x y)"}}}));

  EXPECT_EQ(parse(kGlm4, "get_weather\n{\"city\": \"Paris\"}"),
            (Answer{"", "", {{"get_weather", R"({"city": "Paris"})"}}}));
  EXPECT_EQ(parse(kGlm4, "a\n{}<|assistant|>b\n{\"x\": 1}<|observation|>"),
            (Answer{"", "", {{"a", "{}"}, {"b", R"({"x": 1})"}}}));
  for (const char* text : {"\nHello, world", "Yes", "\n{\"a\": 1}", "yes\nno", "a\n\n{}", "", "get_weather\n"}) {
    EXPECT_EQ(parse(kGlm4, text), (Answer{text, "", {}}));
  }
}

TEST(AnswerFormats, GraniteAndPhi) {
  EXPECT_EQ(parse(kGranite, R"(<|tool_call|>[{"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": {}}])"),
            (Answer{"", "", {{"a", R"({"x": 1})"}, {"b", "{}"}}}));
  EXPECT_EQ(parse(kGranite, R"(<tool_call>[{"name": "a", "arguments": {}}])"), (Answer{"", "", {{"a", "{}"}}}));
  EXPECT_EQ(parse(kGranite, "<think>So.</think><response>Thus.</response>"), (Answer{"Thus.", "So.", {}}));
  EXPECT_EQ(parse(kGranite, "<response>Thus.</response>"), (Answer{"<response>Thus.</response>", "", {}}))
      << "without reasoning it is the user's own tag";
  EXPECT_EQ(parse(kPhi4Mini, R"(functools[{"name": "a", "arguments": {"x": 1}}])"),
            (Answer{"", "", {{"a", R"({"x": 1})"}}}));
  EXPECT_EQ(parse(kPhi4Mini, R"(<|tool_call|>[{"name": "a", "arguments": {}}]<|/tool_call|>)"),
            (Answer{"", "", {{"a", "{}"}}}));
  EXPECT_EQ(parse(kPhi4Mini, "import functools\nfunctools.reduce(f, [1])"),
            (Answer{"import functools\nfunctools.reduce(f, [1])", "", {}}));
}

TEST(AnswerFormats, DeepSeek) {
  EXPECT_EQ(parse(kDeepSeek,
                  "Two calls.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a<｜tool▁sep｜>{\"x\": \"<｜tool▁call▁end｜>\"}"
                  "<｜tool▁call▁end｜><｜tool▁call▁begin｜>b<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"),
            (Answer{"Two calls.", "", {{"a", R"({"x": "<｜tool▁call▁end｜>"})"}, {"b", "{}"}}}));
  EXPECT_EQ(parse(kDeepSeek,
                  "Let me see</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
                  "```json\n{\"city\": \"杭州\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
                  {.prompt = "<｜Assistant｜><think>\n"}),
            (Answer{"", "Let me see", {{"get_weather", R"({"city": "杭州"})"}}}));
  EXPECT_EQ(parse(kDeepSeek, "```sh\nls <｜x\n```\n"), (Answer{"```sh\nls <｜x\n```\n", "", {}}));
  EXPECT_EQ(parse(kDeepSeek, "<｜tool▁call▁begin｜>a{}"), (Answer{"<｜tool▁call▁begin｜>a{}", "", {}}));
}

TEST(AnswerFormats, CommandR) {
  EXPECT_EQ(parse(kCommandR,
                  "<|START_THINKING|>I will search.<|END_THINKING|><|START_ACTION|>[\n    {\"tool_call_id\": \"0\", "
                  "\"tool_name\": \"a\", \"parameters\": {\"q\": \"x\"}},\n    {\"tool_call_id\": \"1\", "
                  "\"tool_name\": \"b\", \"parameters\": {}}\n]<|END_ACTION|>"),
            (Answer{"", "I will search.", {{"a", R"({"q": "x"})"}, {"b", "{}"}}}));
  EXPECT_EQ(parse(kCommandR, "<|START_RESPONSE|>Hello <b>!<|END_RESPONSE|>"), (Answer{"Hello <b>!", "", {}}));
}

TEST(AnswerFormats, Gemma4) {
  EXPECT_EQ(
      parse(kGemma4,
            "<|channel>thought\nLook at \"it\".\n<channel|>Looking.<|tool_call>call:f{city:<|\"|>Zürich {\"a\"}, b"
            "<|\"|>,n:3,ok:true,list:[1,<|\"|>x<|\"|>,{a:null}],empty:{}}<tool_call|><|tool_call>call:g{}"
            "<tool_call|>"),
      (Answer{"Looking.",
              "Look at \"it\".",
              {{"f", R"({"city":"Zürich {\"a\"}, b","n":3,"ok":true,"list":[1,"x",{"a":null}],"empty":{}})"},
               {"g", "{}"}}}));
  EXPECT_EQ(parse(kGemma4, R"(<|tool_call>call:f{"a": "b:\"c", x: plain words}<tool_call|>)"),
            (Answer{"", "", {{"f", R"({"a":"b:\"c","x":"plain words"})"}}}));
  EXPECT_EQ(parse(kGemma4, "<|tool_call>call:f{a:<|\"|>x <|y"), (Answer{"", "", {{"f", R"({"a":"x <|y)"}}}));
}

TEST(AnswerFormats, DetectsWhatATemplateMarks) {
  const auto format = [](const char* source) { return AnswerFormat::detect(source, nullptr); };
  for (const char* source : {kHermes, kQwen3, kQwen3Coder, kLlama, kMistral, kHarmony, kGlm45, kGlm4, kGranite,
                             kPhi4Mini, kDeepSeek, kCommandR, kGemma4}) {
    EXPECT_TRUE(format(source).has_tools()) << source;
    EXPECT_FALSE(format(source).special_text()) << source;
  }
  for (const char* source : {kQwen3, kMistral, kHarmony, kGlm45, kGranite, kDeepSeek, kCommandR, kGemma4}) {
    EXPECT_TRUE(format(source).has_reasoning()) << source;
  }
  for (const char* source : {"", "{{ messages[0].content }}", "<start_of_turn>", "<|user|>\n"}) {
    EXPECT_FALSE(format(source).has_tools()) << source;
    EXPECT_FALSE(format(source).has_reasoning()) << source;
    EXPECT_EQ(parse(source, " <tool_call>{}</tool_call><think> x\n"),
              (Answer{" <tool_call>{}</tool_call><think> x\n", "", {}}));
  }
  EXPECT_FALSE(AnswerFormat().has_tools());
}

}  // namespace
}  // namespace millrace::test
