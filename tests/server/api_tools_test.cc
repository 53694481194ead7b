#include "server/api_tools.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "server/api_fixture.h"
#include "server/api_request.h"

namespace millrace {
namespace {

using test::plain_model;
using test::tool_model;

const std::string kUser = R"("messages":[{"role":"user","content":"hi"}])";
const std::string kTools =
    R"("tools":[{"type":"function","function":{"name":"add","description":"adds","parameters":{"type":"object",)"
    R"("properties":{"a":{"$ref":"#/$defs/number"}},"required":["a"],"additionalProperties":false,)"
    R"("$defs":{"number":{"type":"integer"}}}}},{"type":"function","function":{"name":"stop"}}])";

ApiCall chat(const ServedModel& model, const std::string& fields) {
  auto call = parse_chat("{" + kUser + "," + fields + "}", model);
  EXPECT_TRUE(call.ok()) << fields << (call.ok() ? "" : call.error().json());
  return call.ok() ? std::move(call).value() : ApiCall{};
}

/// Whether the grammar of a call takes `text` as a whole answer.
bool accepts(const ServedModel& model, const ApiCall& call, const std::string& text) {
  const auto ids = model.tokenizer->encode(text, false);
  GrammarMatcher matcher = call.requests.at(0).grammar->start();
  for (const std::int32_t id : *ids) {
    if (!matcher.accept(id).ok()) return false;
  }
  return matcher.accepting();
}

TEST(ApiTools, TheModelChooses) {
  const ServedModel& model = tool_model().served;
  const ApiCall call = chat(model, kTools);
  EXPECT_EQ(call.answer.tools, ToolMode::parse);
  EXPECT_TRUE(call.answer.parse);
  EXPECT_EQ(call.requests[0].grammar, nullptr);
  EXPECT_NE(call.answer.prompts[0].text.find("\"adds\""), std::string::npos);
  EXPECT_EQ(Json::parse(call.answer.tools_json).size(), 2U);
}

TEST(ApiTools, NoneLeavesThemOut) {
  const ApiCall call = chat(tool_model().served, kTools + R"(,"tool_choice":"none")");
  EXPECT_EQ(call.answer.tools, ToolMode::none);
  EXPECT_EQ(call.answer.prompts[0].text.find("adds"), std::string::npos);
  EXPECT_EQ(chat(tool_model().served, R"("tools":[],"tool_choice":"auto")").answer.tools, ToolMode::none);
}

TEST(ApiTools, RequiredForcesAListOfCalls) {
  // Also where the template has no format for calls.
  for (const ServedModel* model : {&tool_model().served, &plain_model().served}) {
    const ApiCall call = chat(*model, kTools + R"(,"tool_choice":"required")");
    EXPECT_EQ(call.answer.tools, ToolMode::required);
    EXPECT_FALSE(call.answer.parse);
    EXPECT_TRUE(accepts(*model, call, R"([{"name":"add","arguments":{"a":1}}])"));
    EXPECT_TRUE(accepts(*model, call, R"([{"name":"add","arguments":{"a":1}},{"name":"stop","arguments":{}}])"));
    EXPECT_FALSE(accepts(*model, call, R"([])"));
    EXPECT_FALSE(accepts(*model, call, R"([{"name":"add","arguments":{"a":"x"}}])"));
    EXPECT_FALSE(accepts(*model, call, R"([{"name":"sub","arguments":{}}])"));
  }
  const ApiCall one = chat(tool_model().served, kTools + R"(,"tool_choice":"required","parallel_tool_calls":false)");
  EXPECT_TRUE(accepts(tool_model().served, one, R"([{"name":"stop","arguments":{}}])"));
  EXPECT_FALSE(accepts(tool_model().served, one, R"([{"name":"stop","arguments":{}},{"name":"stop","arguments":{}}])"));
}

TEST(ApiTools, ANamedToolForcesItsArguments) {
  const ApiCall call =
      chat(tool_model().served, kTools + R"(,"tool_choice":{"type":"function","function":{"name":"add"}})");
  EXPECT_EQ(call.answer.tools, ToolMode::named);
  EXPECT_EQ(call.answer.forced_tool, "add");
  EXPECT_TRUE(accepts(tool_model().served, call, R"({"a":12})"));
  EXPECT_FALSE(accepts(tool_model().served, call, R"({"b":12})"));
}

TEST(ApiTools, AllowedToolsNarrowTheList) {
  const std::string allowed = R"(,"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"required","tools":)"
                              R"([{"type":"function","function":{"name":"stop"}}]}})";
  const ApiCall call = chat(tool_model().served, kTools + allowed);
  EXPECT_EQ(call.answer.tools, ToolMode::required);
  EXPECT_TRUE(accepts(tool_model().served, call, R"([{"name":"stop","arguments":{}}])"));
  EXPECT_FALSE(accepts(tool_model().served, call, R"([{"name":"add","arguments":{"a":1}}])"));
  const auto unknown = parse_chat(
      "{" + kUser + "," + kTools +
          R"(,"tool_choice":{"type":"allowed_tools","allowed_tools":{"tools":[{"type":"function","function":{"name":"x"}}]}}})",
      tool_model().served);
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(unknown.error().param, "tool_choice.allowed_tools.tools[0]");
}

struct Format {
  std::string fields;
  std::vector<std::string> good, bad;
};

TEST(ApiFormat, ConstrainsInEverySpelling) {
  const std::string schema = R"({"type":"object","properties":{"z":{"type":"integer"},"a":{"type":"boolean"}},)"
                             R"("required":["z","a"],"additionalProperties":false})";
  const std::string text = json_string(schema);
  const std::vector<std::string> good = {R"({"z":1,"a":true})"}, bad = {R"({"z":"1","a":true})", "{}", "x"};
  const std::vector<Format> formats = {
      {R"("response_format":{"type":"json_schema","json_schema":{"name":"n","strict":true,"schema":)" + schema + "}}",
       good, bad},
      {R"("guided_json":)" + schema, good, bad},
      {R"("guided_json":)" + text, good, bad},
      {R"("structured_outputs":{"json":)" + schema + "}", good, bad},
      {R"("response_format":{"type":"json_object"})", {"{}", R"({"a":[1]})"}, {"[1]", "1", "{"}},
      {R"("structured_outputs":{"json_object":true})", {"{}"}, {"[1]"}},
      {R"("guided_regex":"[ab]+c")", {"abac"}, {"c", "abacd"}},
      {R"("structured_outputs":{"regex":"[ab]+c"})", {"abac"}, {"c"}},
      {R"("guided_choice":["yes","no"])", {"yes", "no"}, {"y", "yesno", "maybe"}},
      {R"("structured_outputs":{"choice":["yes"]})", {"yes"}, {"no"}},
      {R"("guided_grammar":"start: \"a\" | \"b\" \"c\"")", {"a", "bc"}, {"b", "c"}},
  };
  for (const Format& format : formats) {
    const ApiCall call = chat(plain_model().served, format.fields);
    ASSERT_EQ(call.requests.size(), 1U);
    ASSERT_NE(call.requests[0].grammar, nullptr) << format.fields;
    for (const std::string& answer : format.good) {
      EXPECT_TRUE(accepts(plain_model().served, call, answer)) << format.fields << answer;
    }
    for (const std::string& answer : format.bad) {
      EXPECT_FALSE(accepts(plain_model().served, call, answer)) << format.fields << answer;
    }
  }
  EXPECT_EQ(chat(plain_model().served, R"("response_format":{"type":"text"})").requests[0].grammar, nullptr);
  const auto completion = parse_completion(R"({"prompt":["a","b"],"guided_choice":["x"]})", plain_model().served);
  ASSERT_TRUE(completion.ok());
  EXPECT_EQ(completion->requests[0].grammar, completion->requests[1].grammar);
}

TEST(ApiFormat, NeedsAVocabulary) {
  ServedModel model = plain_model().served;
  model.grammar_vocabulary = nullptr;
  const auto call = parse_completion(R"({"prompt":"a","guided_choice":["x"]})", model);
  ASSERT_FALSE(call.ok());
  EXPECT_EQ(call.error().param, "guided_choice");
}

}  // namespace
}  // namespace millrace
