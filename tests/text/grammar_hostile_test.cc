// Schemas, expressions and grammars that were written to hurt, and random bytes: an error or a grammar, in bounded
// time.

#include <chrono>
#include <functional>

#include "grammar_walk.h"

namespace millrace::test {
namespace {

using Json = nlohmann::json;
using Seconds = std::chrono::duration<double>;

// Compiling is bounded to about a second, a mask to tens of milliseconds, on a machine that does nothing else. The
// bounds here leave room for sanitizers and busy machines: what they find is work without any bound.
constexpr Seconds kCompile{20};
constexpr Seconds kStep{5};

template <typename Body>
void expect_within(Seconds limit, const std::string& what, Body body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  EXPECT_LT(Seconds(std::chrono::steady_clock::now() - start), limit) << what;
}

/// Compiles, and walks a little if that succeeds. Returns the error.
std::string error_of(const Words& words, const GrammarSpec& spec) {
  std::string error;
  const std::string what = spec.text.substr(0, 200);
  std::optional<Grammar> grammar;
  expect_within(kCompile, what, [&] {
    auto compiled = Grammar::compile(words.vocabulary, spec);
    if (compiled.ok()) {
      grammar.emplace(std::move(compiled).value());
    } else {
      error = compiled.error().message;
      EXPECT_FALSE(error.empty());
    }
  });
  EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  EXPECT_LT(error.size(), 1500U) << error;
  if (!grammar) return error;
  GrammarMatcher matcher = grammar->start();
  Random random(1);
  std::vector<std::uint32_t> mask(static_cast<std::size_t>((words.vocab + 31) / 32));
  for (int step = 0; step < 30 && !matcher.finished(); ++step) {
    bool going = true;
    expect_within(kStep, what, [&] { going = matcher.mask(mask).ok(); });
    if (!going) break;  // over a limit: the interface's way out
    std::int32_t token = 0;
    do {
      token = static_cast<std::int32_t>(below(random, static_cast<std::size_t>(words.vocab)));
    } while ((mask[static_cast<std::size_t>(token) / 32] >> (token % 32) & 1U) == 0);
    expect_within(kStep, what, [&] { going = matcher.accept(token).ok(); });
    if (!going) break;
  }
  return error;
}

std::string times(const std::string& text, int count) {
  std::string all;
  for (int i = 0; i < count; ++i) all += text;
  return all;
}

Json mapped(int count, const std::function<void(Json&, int)>& add, Json all = Json::array()) {
  for (int i = 0; i < count; ++i) add(all, i);
  return all;
}

Json properties(int count) {
  return mapped(
      count,
      [](Json& all, int i) {
        all["p" + std::to_string(i)] = {{"type", "integer"}};
      },
      Json::object());
}

Json chain(int count) {
  return mapped(
      count,
      [&](Json& all, int i) {
        all["a" + std::to_string(i)] = {{"items", {{"$ref", "#/$defs/a" + std::to_string(i + 1)}}}};
      },
      Json::object());
}

TEST(GrammarHostile, Schemas) {
  const Words words = Words::stories();
  const auto error = [&](const Json& schema) { return error_of(words, json_schema(schema)); };
  EXPECT_NE(error_of(words, {GrammarSpec::Kind::json_schema, times(R"({"items":)", 5000) + "{}" + times("}", 5000), {}})
                .find("recursion limit"),
            std::string::npos);
  EXPECT_NE(error({{"$ref", "#/$defs/a0"}, {"$defs", chain(5000)}}).find("nested more than"), std::string::npos);
  EXPECT_NE(error(properties(20000)), "") << "unknown keywords, and larger than a schema may be";
  EXPECT_NE(error({{"type", "object"}, {"properties", properties(3000)}}).find("expected at most"), std::string::npos);
  EXPECT_NE(error({{"type", "integer"}, {"multipleOf", 999983}}).find("multipleOf"), std::string::npos);
  EXPECT_EQ(error({{"type", "array"}, {"items", {{"type", "integer"}}}, {"minItems", 1000000000}}), "");
  EXPECT_EQ(error({{"type", "string"}, {"minLength", 100000000}, {"maxLength", 1000000000}}), "");
  EXPECT_EQ(error({{"type", "string"}, {"pattern", "^((((a{1,1000}){1,1000}){1,1000}){1,1000})b$"}}), "");
  error({{"type", "string"}, {"pattern", "(a|b)*a(a|b){40}c"}, {"minLength", 1000}});

  // Alternatives that multiply: 10^8 of them.
  const Json tens = mapped(10, [](Json& all, int i) {
    all.push_back({{"type", "object"}, {"properties", {{"k" + std::to_string(i), Json::object()}}}});
  });
  const Json products = mapped(8, [&](Json& all, int) { all.push_back({{"anyOf", tens}}); });
  EXPECT_NE(error({{"allOf", products}}).find("too complex"), std::string::npos);
  // Copies: each of many alternatives gets a large schema for further properties.
  const Json many = mapped(900, [](Json& all, int i) { all.push_back(Json::array({i})); });
  const Json objects = mapped(1500, [](Json& all, int i) {
    all.push_back({{"type", "object"}, {"properties", {{"k" + std::to_string(i), Json::object()}}}});
  });
  const Json rest = {{"type", "object"}, {"additionalProperties", {{"enum", many}}}};
  EXPECT_NE(error({{"allOf", {{{"anyOf", objects}}, rest}}}).find("too complex"), std::string::npos);
  // Two schemas that both refer to themselves, at once.
  const auto tree = [](const std::string& name) {
    const Json ref = {{"$ref", "#/$defs/" + name}};
    return Json{{"type", "object"}, {"properties", {{"l", ref}, {"r", ref}}}};
  };
  EXPECT_NE(error({{"$defs", {{"a", tree("a")}, {"b", tree("b")}}},
                   {"allOf", {{{"$ref", "#/$defs/a"}}, {{"$ref", "#/$defs/b"}}}}})
                .find("too complex"),
            std::string::npos);
  const Json patterns = mapped(
      200, [](Json& all, int i) { all["^x" + std::to_string(i) + "[a-z]+$"] = Json::object(); }, Json::object());
  EXPECT_NE(error({{"type", "object"}, {"patternProperties", patterns}}).find("patternProperties"), std::string::npos);
  // A character cut in half in the library's own message.
  EXPECT_NE(error({{"type", "object"}, {"minProperties", times("é", 200)}}), "");
  // Options of the library do not get through.
  EXPECT_EQ(error({{"type", "object"}, {"x-guidance", {{"nonsense", 1}}}}), "");
}

TEST(GrammarHostile, WhatManyPartsReferToIsBuiltOnce) {
  const Words words = Words::stories();
  const Json shared = {{"type", "object"}, {"properties", properties(300)}, {"additionalProperties", false}};
  const Json uses = mapped(
      300,
      [](Json& all, int i) {
        all["u" + std::to_string(i)] = {{"$ref", "#/$defs/shared"}};
      },
      Json::object());
  EXPECT_EQ(error_of(words, json_schema({{"$defs", {{"shared", shared}}}, {"type", "object"}, {"properties", uses}})),
            "");
}

TEST(GrammarHostile, RegularExpressions) {
  const Words words = Words::tiny();
  const auto error = [&](const std::string& text) { return error_of(words, regex(text)); };
  EXPECT_EQ(error("((((a{1000}){1000}){1000}){1000}){1000}"), "");
  EXPECT_EQ(error("(a{0,1000000000}b){0,1000000000}"), "");
  EXPECT_EQ(error("((((a*)*)*)*)*b"), "");
  EXPECT_EQ(error("(a|b)*a(a|b){60}c"), "");
  EXPECT_EQ(error(times("(", 200) + "a" + times(")", 200)), "");
  EXPECT_NE(error(times("(", 2000) + "a" + times(")", 2000)).find("nested parentheses"), std::string::npos);
  EXPECT_NE(error(times(".*", 4000)).find("repeats too many"), std::string::npos);
  EXPECT_NE(error(times("a", 100000)).find("expected at most"), std::string::npos);
  EXPECT_NE(error("").find("empty"), std::string::npos);
  EXPECT_NE(error("abc\\").find("backslash"), std::string::npos);
  EXPECT_NE(error("a(b").find("unclosed group"), std::string::npos);
  EXPECT_NE(error("(?=x)y").find("look-around"), std::string::npos);
  EXPECT_NE(error("[^\\s\\S]").find("no answer fits"), std::string::npos);
  EXPECT_NE(error("\xff").find("not UTF-8"), std::string::npos);
  error(times(".*", 900));
  error("(?i)" + times("\\pL", 800));
  error(".*a.{200}b");
}

TEST(GrammarHostile, LarkGrammars) {
  const Words words = Words::stories();
  const auto error = [&](const std::string& text) { return error_of(words, lark(text)); };
  const auto rules = [](int count, const std::function<std::string(std::string, std::string)>& line) {
    std::string text = "start: T0 | r0\nr" + std::to_string(count) + ": \"a\"\nT" + std::to_string(count) + ": \"a\"\n";
    for (int i = 0; i < count; ++i) text += line(std::to_string(i), std::to_string(i + 1)) + "\n";
    return text;
  };
  // Terminals that double 40 times, or that are a thousand times as large three times.
  EXPECT_NE(error(rules(40, [](auto i, auto j) { return "T" + i + ": T" + j + " T" + j + "\nr" + i + ": r" + j; }))
                .find("written out"),
            std::string::npos);
  EXPECT_NE(error(rules(3, [](auto i,
                              auto j) { return "T" + i + ": " + times("T" + j + " ", 1000) + "\nr" + i + ": r" + j; }))
                .find("written out"),
            std::string::npos);
  // Deep ones: the stack holds them.
  EXPECT_EQ(error(rules(900, [](auto i, auto j) { return "r" + i + ": ((((r" + j + " \"x\"))))\nT" + i + ": T" + j; })),
            "");
  error("start: r\nr: " + times("(", 30) + "\"a\" r?" + times(")", 30));
  EXPECT_NE(error("start: " + times("(", 5000) + "\"a\"" + times(")", 5000)).find("too deeply nested"),
            std::string::npos);
  EXPECT_EQ(error("start: (((\"a\"{1,1000}){1,1000}){1,1000}){1,1000}"), "");
  EXPECT_EQ(error("start: \"a\"{100000000}"), "");
  EXPECT_EQ(error("start: s\ns: s s | s s s | \"a\" | "), "") << "ambiguous";
  EXPECT_NE(error("start: start").find("no answer fits"), std::string::npos);
  EXPECT_NE(error("start: a\nb: \"x\"").find("unknown name"), std::string::npos);
  EXPECT_NE(error("b: \"x\"").find("no start rule"), std::string::npos);
  EXPECT_NE(error("start: %json {\"type\"").find("%json"), std::string::npos);
  EXPECT_NE(error("start: %json " + Json({{"type", "integer"}, {"multipleOf", 999983}}).dump()).find("multipleOf"),
            std::string::npos);
  EXPECT_NE(error("start: \"" + times("a", 40000) + "\"").find("expected at most"), std::string::npos);
  EXPECT_NE(error("").find("start"), std::string::npos);
}

TEST(GrammarHostile, Choices) {
  const Words words = Words::stories();
  EXPECT_NE(error_of(words, choice({})).find("0 choices"), std::string::npos);
  EXPECT_NE(error_of(words, choice({"a", ""})).find("empty"), std::string::npos);
  EXPECT_NE(error_of(words, choice({"a\xff"})).find("not UTF-8"), std::string::npos);
  EXPECT_NE(error_of(words, choice(std::vector<std::string>(20000, "a"))).find("20000 choices"), std::string::npos);
  std::vector<std::string> many;
  for (int i = 0; i < 5000; ++i) many.push_back("choice number " + std::to_string(i));
  EXPECT_EQ(error_of(words, choice(many)), "");
}

/// A text with some of its bytes changed, taken out or doubled.
std::string mutated(std::string text, Random& random) {
  static constexpr char kBytes[] = "{}[]()\"\\|*+?~:,.$^%/#<>0129azAZ_- \n\xc3\xa9\xff";
  for (std::size_t i = 0, count = 1 + below(random, 4); i < count && !text.empty(); ++i) {
    const std::size_t at = below(random, text.size());
    const char byte = kBytes[below(random, sizeof(kBytes) - 1)];
    switch (below(random, 4)) {
      case 0:
        text[at] = byte;
        break;
      case 1:
        text.erase(at, 1 + below(random, 4));
        break;
      case 2:
        text.insert(at, 1, byte);
        break;
      default:
        text.insert(at, text.substr(below(random, text.size()), 8));
        break;
    }
  }
  return text;
}

TEST(GrammarHostile, RandomBytesAndMutations) {
  const Words words = Words::stories();
  const std::pair<GrammarSpec::Kind, const char*> seeds[] = {
      {GrammarSpec::Kind::json_schema,
       R"({"type":"object","properties":{"a":{"type":"integer","minimum":-3,"maximum":1e2,"multipleOf":0.5},
       "b":{"anyOf":[{"const":"x"},{"$ref":"#/$defs/n"}]},"c":{"type":"string","pattern":"^a+$","maxLength":4}},
       "required":["a"],"additionalProperties":false,"$defs":{"n":{"type":["array","null"],"items":{"$ref":"#"}}}})"},
      {GrammarSpec::Kind::regex, R"((foo|ba[rz]){1,3}\s*(?:\d+|[^a-z\\]{2})?é.*$)"},
      {GrammarSpec::Kind::lark,
       "start: a | B \"x\"i %json {\"type\":\"null\"}\na: (\"p\" | /q+/){1,3} b?\nb[max_tokens=3]: /[a-z]+/\n"
       "B: \"k\" ~ 2 | C\nC: /z/ & ~/y/\n%ignore / +/\n// comment\n"}};
  Random random(42);
  int compiled = 0;
  for (int i = 0; i < 250; ++i) {
    for (const auto& [kind, seed] : seeds) compiled += error_of(words, {kind, mutated(seed, random), {}}).empty();
    std::string noise(below(random, 60), '\0');
    for (char& byte : noise) byte = static_cast<char>(random());
    for (const auto& seed : seeds) error_of(words, {seed.first, noise, {}});
  }
  EXPECT_GT(compiled, 30);
}

}  // namespace
}  // namespace millrace::test
