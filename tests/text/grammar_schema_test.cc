// Random walks through the grammars of random JSON schemas: what ends, parses and conforms.

#include <map>
#include <regex>

#include "grammar_walk.h"

namespace millrace::test {
namespace {

using Json = nlohmann::json;

/// Makes schemas whose values are bounded, of the keywords that `conforms` knows.
class SchemaMaker {
 public:
  explicit SchemaMaker(std::uint64_t seed) : random_(seed) {}

  Json schema(int depth) {
    switch (below(random_, depth > 0 ? 12 : 8)) {
      case 0:
        return {{"type", "null"}};
      case 1:
        return {{"type", "boolean"}};
      case 2:
        return integer();
      case 3:
        return number();
      case 4:
        return string();
      case 5:
        return {{"type", "string"}, {"pattern", kPatterns[below(random_, std::size(kPatterns))]}};
      case 6:
        return {{"enum", values()}};
      case 7:
        return {{"const", values()[0]}};
      case 8:
      case 9:
        return object(depth - 1);
      case 10:
        return array(depth - 1);
      default:
        return {{"anyOf", {schema(depth - 1), schema(depth - 1)}}};
    }
  }

 private:
  static constexpr const char* kPatterns[] = {"^[a-z]{2,5}$", "^[0-9]{3}-[0-9]{2}$", "^(foo|ba[rz]){1,3}$",
                                              "^[A-Z][a-z]? [0-9]{1,2}$"};

  Json integer() {
    const int low = static_cast<int>(below(random_, 2000)) - 1000;
    return {{"type", "integer"}, {"minimum", low}, {"maximum", low + static_cast<int>(below(random_, 300))}};
  }

  Json number() {
    const double low = static_cast<double>(below(random_, 200)) / 4 - 25;
    return {{"type", "number"}, {"minimum", low}, {"maximum", low + 7.5}};
  }

  Json string() {
    const std::size_t low = below(random_, 4);
    return {{"type", "string"}, {"minLength", low}, {"maxLength", low + 1 + below(random_, 8)}};
  }

  Json values() {
    Json all = {"plain", "with \"quotes\" and \\", "ünï ✓ 🦙", 17, -3, true, nullptr, "line\nbreak"};
    std::shuffle(all.begin(), all.end(), random_);
    all.erase(all.begin() + 1 + static_cast<std::ptrdiff_t>(below(random_, 4)), all.end());
    return all;
  }

  Json object(int depth) {
    Json properties = Json::object();
    Json required = Json::array();
    for (std::size_t i = 0, count = below(random_, 5); i < count; ++i) {
      const std::string name = kNames[below(random_, std::size(kNames))] + std::to_string(i);
      properties[name] = schema(depth);
      if (below(random_, 3) != 0) required.push_back(name);
    }
    return {{"type", "object"}, {"properties", properties}, {"required", required}, {"additionalProperties", false}};
  }

  Json array(int depth) {
    const std::size_t low = below(random_, 3);
    return {{"type", "array"}, {"items", schema(depth)}, {"minItems", low}, {"maxItems", low + below(random_, 3)}};
  }

  static constexpr const char* kNames[] = {"a", "name ", "größe", "x\"y"};
  Random random_;
};

std::size_t characters(const std::string& text) {
  return static_cast<std::size_t>(
      std::ranges::count_if(text, [](char byte) { return (static_cast<unsigned char>(byte) & 0xC0U) != 0x80U; }));
}

bool conforms(const Json& value, const Json& schema);

bool has_type(const Json& value, const Json& schema) {
  const std::string type = schema.value("type", "");
  if (type == "null") return value.is_null();
  if (type == "boolean") return value.is_boolean();
  if (type == "integer" || type == "number") {
    const bool kind = type == "integer" ? value.is_number_integer() : value.is_number();
    return kind && value.get<double>() >= schema.value("minimum", -1e300) &&
           value.get<double>() <= schema.value("maximum", 1e300);
  }
  if (type == "string") {
    if (!value.is_string()) return false;
    const auto& text = value.get_ref<const std::string&>();
    if (schema.contains("pattern") && !std::regex_search(text, std::regex(schema["pattern"].get<std::string>()))) {
      return false;
    }
    return characters(text) >= schema.value("minLength", 0U) && characters(text) <= schema.value("maxLength", 1000U);
  }
  if (type == "array") {
    return value.is_array() && value.size() >= schema.value("minItems", 0U) &&
           value.size() <= schema.value("maxItems", 1000U) &&
           std::ranges::all_of(value, [&](const Json& item) { return conforms(item, schema["items"]); });
  }
  if (type != "object" || !value.is_object()) return false;
  for (const auto& [name, field] : value.items()) {
    if (!schema["properties"].contains(name) || !conforms(field, schema["properties"][name])) return false;
  }
  return std::ranges::all_of(schema["required"], [&](const Json& name) { return value.contains(name); });
}

bool conforms(const Json& value, const Json& schema) {
  const auto equals = [&](const Json& other) { return value == other && value.type_name() == other.type_name(); };
  const auto fits = [&](const Json& other) { return conforms(value, other); };
  if (schema.contains("const")) return equals(schema["const"]);
  if (schema.contains("enum")) return std::ranges::any_of(schema["enum"], equals);
  if (schema.contains("anyOf")) return std::ranges::any_of(schema["anyOf"], fits);
  return has_type(value, schema);
}

TEST(GrammarSchema, TheCheckerOfThisTestSeesWhatIsWrong) {
  const Json schema = {{"type", "object"},
                       {"properties", {{"a", {{"type", "integer"}, {"minimum", 1}, {"maximum", 3}}}}},
                       {"required", {"a"}},
                       {"additionalProperties", false}};
  EXPECT_TRUE(conforms(Json::parse(R"({"a":2})"), schema));
  for (const char* wrong : {"{}", R"({"a":4})", R"({"a":2.5})", R"({"a":2,"b":1})", "[]", R"({"a":"2"})"}) {
    EXPECT_FALSE(conforms(Json::parse(wrong), schema)) << wrong;
  }
  EXPECT_FALSE(conforms("abcdef", {{"type", "string"}, {"minLength", 0}, {"maxLength", 5}}));
  EXPECT_FALSE(conforms("12-345", {{"type", "string"}, {"pattern", "^[0-9]{3}-[0-9]{2}$"}}));
}

void expect_random_schemas_kept(const Words& words, std::uint64_t first_seed) {
  Random random(first_seed);
  int ended = 0;
  constexpr int kSchemas = 100;
  for (std::uint64_t seed = first_seed; seed < first_seed + kSchemas; ++seed) {
    const Json schema = SchemaMaker(seed).schema(3);
    const Grammar grammar = words.compiled(json_schema(schema));
    const Answer answer = walk(words, grammar, random);
    if (!answer.ended) continue;
    ++ended;
    const Json value = Json::parse(answer.text, nullptr, false);
    ASSERT_FALSE(value.is_discarded()) << schema << "\n" << answer.text;
    EXPECT_TRUE(conforms(value, schema)) << schema << "\n" << answer.text;
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_EQ(ended, kSchemas) << "all of them are bounded";
}

TEST(GrammarSchema, RandomOnesAreKeptByByteLevelTokens) {
  expect_random_schemas_kept(Words::tiny(), 1000);
}

TEST(GrammarSchema, RandomOnesAreKeptBySentencePieceTokens) {
  expect_random_schemas_kept(Words::stories(), 2000);
}

TEST(GrammarSchema, ReferencesMayRecur) {
  const Words words = Words::stories();
  const Json node = {
      {"type", "object"},
      {"properties",
       {{"value", {{"type", "boolean"}}}, {"next", {{"anyOf", {{{"type", "null"}}, {{"$ref", "#/$defs/node"}}}}}}}},
      {"required", {"value", "next"}},
      {"additionalProperties", false}};
  const Grammar grammar = words.compiled(json_schema({{"$defs", {{"node", node}}}, {"$ref", "#/$defs/node"}}));
  Random random(7);
  std::map<int, int> depths;
  for (int i = 0; i < 20; ++i) {
    const Answer answer = walk(words, grammar, random);
    ASSERT_TRUE(answer.ended);
    Json value = Json::parse(answer.text);
    int depth = 0;
    for (; !value.is_null(); value = Json(value["next"])) {
      ++depth;
      ASSERT_TRUE(value["value"].is_boolean() && value.size() == 2) << answer.text;
    }
    ++depths[depth];
  }
  EXPECT_GT(depths.size(), 1U);
}

TEST(GrammarSchema, OneOfAlternativesThatExcludeEachOther) {
  const Words words = Words::tiny();
  const auto kind = [](const char* name, const char* field) {
    return Json{{"type", "object"},
                {"properties", {{"kind", {{"const", name}}}, {field, {{"type", "boolean"}}}}},
                {"required", {"kind", field}},
                {"additionalProperties", false}};
  };
  // As Pydantic writes a discriminated union.
  const Grammar grammar =
      words.compiled(json_schema({{"$defs", {{"cat", kind("cat", "purrs")}, {"dog", kind("dog", "barks")}}},
                                  {"oneOf", {{{"$ref", "#/$defs/cat"}}, {{"$ref", "#/$defs/dog"}}}}}));
  Random random(6);
  for (int i = 0; i < 10; ++i) {
    const Json value = Json::parse(walk(words, grammar, random).text);
    EXPECT_TRUE(value["kind"] == "cat" ? value["purrs"].is_boolean() : value["barks"].is_boolean()) << value;
  }
  const auto overlap = Grammar::compile(
      words.vocabulary, json_schema({{"oneOf", {{{"type", "integer"}}, {{"type", "integer"}, {"minimum", 1}}}}}));
  ASSERT_FALSE(overlap.ok());
  EXPECT_NE(overlap.error().message.find("exclude each other"), std::string::npos) << overlap.error().message;
}

TEST(GrammarSchema, AnyObjectIsAnObject) {
  const Words words = Words::tiny();
  const Grammar grammar = words.compiled({});
  Random random(3);
  int ended = 0;
  for (int i = 0; i < 20; ++i) {
    const Answer answer = walk(words, grammar, random, 1500);
    if (!answer.ended) continue;
    ++ended;
    try {
      EXPECT_TRUE(Json::parse(answer.text).is_object()) << answer.text;
    } catch (const Json::out_of_range&) {  // a number beyond double, which JSON allows
    } catch (const Json::parse_error& error) {
      ADD_FAILURE() << error.what() << "\n" << answer.text;
    }
  }
  EXPECT_GT(ended, 5);
}

TEST(GrammarSchema, WhiteSpaceComesInBoundedPieces) {
  const Words words = Words::tiny();
  // Whatever is chosen, the longest white space outside of strings is a line break and its indentation.
  const Grammar grammar = words.compiled(json_schema(
      {{"type", "array"}, {"items", {{"type", "integer"}, {"minimum", 0}, {"maximum", 9}}}, {"minItems", 40}}));
  GrammarMatcher matcher = grammar.start();
  std::size_t run = 0;
  for (int step = 0; step < 400; ++step) {
    // White space whenever it may come.
    const auto allowed = words.allowed(matcher);
    std::int32_t chosen = allowed[0];
    for (const std::int32_t id : allowed) {
      const std::string bytes = words.vocabulary.token_bytes(id);
      if (!bytes.empty() && bytes.find_first_not_of(" \n\t\r") == std::string::npos) chosen = id;
    }
    if (chosen == words.eos) break;
    const std::string bytes = words.vocabulary.token_bytes(chosen);
    ASSERT_TRUE(matcher.accept(chosen).ok());
    run = bytes.find_first_not_of(" \n\t\r") == std::string::npos ? run + bytes.size() : 0;
    ASSERT_LE(run, 25U);
  }
  for (const char* form : {"[1,2]", "[1, 2]", "[\n  1,\n  2\n]", "[\n\t1,\n\t2\n]"}) {
    GrammarMatcher follower = words.compiled(json_schema({{"type", "array"}})).start();
    const auto ids = words.tokenizer.encode(form, false).value();
    for (const std::int32_t id : ids) EXPECT_TRUE(follower.accept(id).ok()) << form;
    EXPECT_TRUE(follower.finished()) << form;
  }
}

TEST(GrammarSchema, ErrorsSayWhatIsWrong) {
  const Words words = Words::stories();
  const std::pair<const char*, const char*> wrong[] = {
      {"{\"type\":", "JSON schema: not JSON"},
      {"[]", "a schema is an object"},
      {"false", "allows nothing"},
      {"{\"type\":\"objekt\"}", "objekt"},
      {"{\"not\":{}}", "not"},
      {"{\"type\":\"integer\",\"minimum\":5,\"maximum\":3}", "minimum (5) is greater than maximum (3)"},
      {"{\"$ref\":\"#/$defs/none\"}", "none"},
      {"{\"$ref\":\"#\"}", "no answer fits"},
      {"{\"type\":\"string\",\"pattern\":\"(\"}", "unclosed group"},
      {"{\"enum\":[]}", "empty"},
  };
  for (const auto& [text, part] : wrong) {
    const auto grammar = Grammar::compile(words.vocabulary, {GrammarSpec::Kind::json_schema, text, {}});
    ASSERT_FALSE(grammar.ok()) << text;
    EXPECT_NE(grammar.error().message.find(part), std::string::npos) << text << "\n" << grammar.error().message;
    EXPECT_EQ(grammar.error().message.find('\n'), std::string::npos) << grammar.error().message;
  }
}

}  // namespace
}  // namespace millrace::test
