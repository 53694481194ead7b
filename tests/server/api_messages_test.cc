#include <gtest/gtest.h>

#include <string>

#include "server/api_fixture.h"
#include "server/api_request.h"

namespace millrace {
namespace {

using test::plain_model;
using test::tool_model;

std::string prompt(const ServedModel& model, const std::string& fields) {
  const auto call = parse_chat("{" + fields + "}", model);
  if (!call.ok()) return call.error().json();
  return call->answer.prompts[0].text;
}

TEST(ApiMessages, JoinsTextParts) {
  EXPECT_EQ(prompt(plain_model().served,
                   R"("messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}])"),
            "<|im_start|>user\na\nb<|endoftext|>\n<|im_start|>assistant\n");
}

TEST(ApiMessages, DevelopersAreSystemsWhereUnknown) {
  EXPECT_EQ(
      prompt(plain_model().served, R"("messages":[{"role":"developer","content":"a"}],"add_generation_prompt":false)"),
      "<|im_start|>system\na<|endoftext|>\n");
  const auto knows = test::make_model("{# developer #}" + std::string(test::kPlainTemplate), "byte_level_bpe");
  EXPECT_EQ(prompt(knows->served, R"("messages":[{"role":"developer","content":"a"}],"add_generation_prompt":false)"),
            "<|im_start|>developer\na<|endoftext|>\n");
}

TEST(ApiMessages, ContinuesTheLastMessage) {
  EXPECT_EQ(prompt(plain_model().served,
                   R"("messages":[{"role":"user","content":"a"},{"role":"assistant","content":"Sure: "}],)"
                   R"("continue_final_message":true)"),
            "<|im_start|>user\na<|endoftext|>\n<|im_start|>assistant\nSure: ");
}

constexpr const char* kCalls =
    R"("messages":[{"role":"user","content":"q"},{"role":"assistant","content":null,"tool_calls":)"
    R"([{"id":"1","type":"function","function":{"name":"f","arguments":"{\"b\": 1, \"a\": [2]}"}}]},)"
    R"({"role":"tool","tool_call_id":"1","content":"r"}],"add_generation_prompt":false)";

TEST(ApiMessages, SaysWhichTokensAreTheSystems) {
  ServedModel model = plain_model().served;
  const std::string messages =
      R"({"messages":[{"role":"system","content":"Be brief and say sorry."},{"role":"user","content":" brief? "}]})";
  EXPECT_EQ(parse_chat(messages, model)->requests[0].pinned_tokens, 0) << "nobody wants to know";
  model.pins_system = true;
  const auto pinned_text = [&](const std::string& body) {
    const auto call = parse_chat(body, model);
    EXPECT_TRUE(call.ok());
    const Request& request = call->requests[0];
    EXPECT_LE(request.pinned_tokens, static_cast<std::int64_t>(request.prompt.size()));
    std::vector<std::int32_t> ids(request.prompt.begin(), request.prompt.begin() + request.pinned_tokens);
    return *model.tokenizer->decode(ids, false);
  };
  // To the user's first word, which the system has said, too; the token before it may belong to it.
  EXPECT_EQ(
      pinned_text(messages).rfind("<|im_start|>system\nBe brief and say sorry.<|endoftext|>\n<|im_start|>user", 0), 0u);
  EXPECT_EQ(pinned_text(messages).find("brief?"), std::string::npos);
  EXPECT_EQ(pinned_text(R"({"messages":[{"role":"user","content":"user"}]})").rfind("<|im_start|>user", 0), 0u)
      << "what the template says, too";
  EXPECT_EQ(pinned_text(R"({"messages":[{"role":"user","content":"a b c"}]})").rfind("<|im_start|>user", 0), 0u);
  EXPECT_EQ(pinned_text(R"({"messages":[{"role":"system","content":"a"}]})"), "") << "there is nothing else";
}

TEST(ApiMessages, ArgumentsOfCallsAreObjects) {
  const std::string text = prompt(tool_model().served, kCalls);
  EXPECT_NE(text.find(R"({"name": "f", "arguments": {"b": 1, "a": [2]}})"), std::string::npos) << text;
  EXPECT_NE(text.find("<|im_start|>tool\nr"), std::string::npos) << text;
}

TEST(ApiMessages, ArgumentsOfCallsAreTextForTemplatesThatWantIt) {
  const auto model = test::make_model(
      "{%- for message in messages %}{% for call in message.tool_calls or [] %}"
      "{{ call.function.name + '(' + call.function.arguments + ')' }}{% endfor %}{% endfor %}",
      "byte_level_bpe");
  EXPECT_EQ(prompt(model->served, kCalls), R"(f({"b":1,"a":[2]}))");
}

TEST(ApiMessages, TheTemplateMayRefuse) {
  const auto model = test::make_model("{{ raise_exception('roles must alternate') }}", "byte_level_bpe");
  const auto call = parse_chat(R"({"messages":[{"role":"user","content":"a"}]})", model->served);
  ASSERT_FALSE(call.ok());
  EXPECT_EQ(call.error().status, 400);
  EXPECT_EQ(call.error().param, "messages");
  EXPECT_NE(call.error().message.find("roles must alternate"), std::string::npos);
}

TEST(ApiMessages, KwargsReachTheTemplate) {
  const std::string user = R"("messages":[{"role":"user","content":"a"}])";
  const ServedModel& model = tool_model().served;
  EXPECT_EQ(prompt(model, user).find("<think>"), std::string::npos);
  EXPECT_NE(prompt(model, user + R"(,"chat_template_kwargs":{"enable_thinking":false})").find("<think>"),
            std::string::npos);
  // An answer under a grammar cannot reason first, so the template is told so, unless the client knows better.
  EXPECT_NE(prompt(model, user + R"(,"guided_choice":["x"])").find("<think>"), std::string::npos);
  EXPECT_EQ(
      prompt(model, user + R"(,"guided_choice":["x"],"chat_template_kwargs":{"enable_thinking":true})").find("<think>"),
      std::string::npos);
}

TEST(ApiMessages, ModelsWithoutATemplateDoNotChat) {
  ServedModel model = tool_model().served;
  model.chat_template = nullptr;
  const auto call = parse_chat(R"({"messages":[{"role":"user","content":"a"}]})", model);
  ASSERT_FALSE(call.ok());
  EXPECT_EQ(call.error().status, 400);
}

TEST(ApiTokenize, ThereAndBack) {
  const ServedModel& model = plain_model().served;
  const auto tokens = answer_tokenize(R"({"prompt":"hello there","return_token_strs":true})", model);
  ASSERT_TRUE(tokens.ok());
  const Json parsed = Json::parse(*tokens);
  EXPECT_EQ(parsed["tokens"][0], 1500) << "the tokenizer's own special token";
  EXPECT_EQ(parsed["count"], parsed["tokens"].size());
  EXPECT_EQ(parsed["token_strs"].size(), parsed["tokens"].size());
  EXPECT_EQ(parsed["max_model_len"], 1000);
  const auto plain = answer_tokenize(R"({"prompt":"hello there","add_special_tokens":false})", model);
  const auto text = answer_detokenize("{\"tokens\":" + Json::parse(*plain)["tokens"].dump() + "}", model);
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(*text, R"({"prompt":"hello there"})");
  const auto chat = answer_tokenize(R"({"messages":[{"role":"user","content":"a"}]})", model);
  ASSERT_TRUE(chat.ok());
  const auto rendered = answer_detokenize("{\"tokens\":" + Json::parse(*chat)["tokens"].dump() + "}", model);
  EXPECT_NE(rendered->find("<|im_start|>user"), std::string::npos) << *rendered;
}

TEST(ApiTokenize, RefusesBadBodies) {
  const ServedModel& model = plain_model().served;
  EXPECT_EQ(answer_tokenize("{}", model).error().param, "prompt");
  EXPECT_EQ(answer_tokenize(R"({"prompt":5})", model).error().code, "invalid_type");
  EXPECT_EQ(answer_tokenize(R"({"messages":[]})", model).error().param, "messages");
  EXPECT_EQ(answer_tokenize(R"({"model":"x","prompt":"a"})", model).error().status, 404);
  EXPECT_EQ(answer_detokenize("{}", model).error().param, "tokens");
  EXPECT_EQ(answer_detokenize(R"({"tokens":[1,99999]})", model).error().param, "tokens[1]");
  EXPECT_EQ(answer_detokenize(R"({"tokens":["a"]})", model).error().param, "tokens[0]");
  ServedModel bare = model;
  bare.tokenizer = nullptr;
  EXPECT_EQ(answer_tokenize(R"({"prompt":"a"})", bare).error().status, 400);
  EXPECT_EQ(answer_detokenize(R"({"tokens":[1]})", bare).error().status, 400);
}

}  // namespace
}  // namespace millrace
