#include "server/api_answer.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "server/api_fixture.h"

namespace millrace {
namespace {

using test::Merged;
using test::plain_model;
using test::play;
using test::tool_model;

AnswerSpec chat_spec(std::int32_t n, bool stream) {
  AnswerSpec spec;
  spec.model = "test-model";
  spec.prompts = {{.tokens = 5, .text = "<|im_start|>assistant\n"}};
  spec.n = spec.choices = n;
  spec.stream = stream;
  spec.include_usage = stream;
  spec.stop_ids = {1500};
  return spec;
}

/// Gives the events of all choices of one request to the builder in a random order that keeps each choice's own, and
/// the summary with the last.
std::string feed(AnswerBuilder& builder, std::vector<std::vector<TokenEvent>> choices, std::uint32_t seed,
                 std::size_t request = 0) {
  RequestSummary summary{.prompt_tokens = 5, .cached_tokens = 2};
  std::size_t left = 0;
  for (const auto& events : choices) left += events.size();
  summary.generated_tokens = static_cast<std::int64_t>(left);
  std::mt19937 random(seed);
  std::vector<std::size_t> next(choices.size(), 0);
  std::string out;
  while (left > 0) {
    const std::size_t choice = random() % choices.size();
    if (next[choice] == choices[choice].size()) continue;
    EXPECT_FALSE(builder.done());
    TokenEvent event = choices[choice][next[choice]++];
    if (--left == 0) event.summary = &summary;
    builder.on(request, event, out);
  }
  EXPECT_TRUE(builder.done());
  return out;
}

/// The choices of a whole answer, in the form of merged chunks.
std::vector<Merged> whole(const std::string& response) {
  std::vector<Merged> merged;
  const Json parsed = Json::parse(response);
  for (const Json& choice : parsed["choices"]) {
    EXPECT_EQ(choice["index"], merged.size());
    const Json& message = choice["message"];
    Merged one;
    one.role = message["role"];
    one.content = message["content"].is_null() ? "" : message["content"].get<std::string>();
    one.reasoning = message.value("reasoning_content", "");
    one.finish = choice["finish_reason"];
    for (const Json& call : message.value("tool_calls", Json::array())) {
      one.calls.push_back(
          {{"id", call["id"]}, {"name", call["function"]["name"]}, {"arguments", call["function"]["arguments"]}});
    }
    if (!choice["logprobs"].is_null()) one.logprobs = choice["logprobs"]["content"];
    merged.push_back(std::move(one));
  }
  return merged;
}

void expect_same(const Merged& a, const Merged& b) {
  EXPECT_EQ(a.role, b.role);
  EXPECT_EQ(a.content, b.content);
  EXPECT_EQ(a.reasoning, b.reasoning);
  EXPECT_EQ(a.finish, b.finish);
  EXPECT_EQ(a.logprobs, b.logprobs);
  ASSERT_EQ(a.calls.size(), b.calls.size());
  for (std::size_t i = 0; i < a.calls.size(); ++i) {  // ids are drawn anew
    EXPECT_EQ(a.calls[i]["name"], b.calls[i]["name"]);
    EXPECT_EQ(a.calls[i]["arguments"], b.calls[i]["arguments"]);
    EXPECT_TRUE(a.calls[i]["id"].get<std::string>().starts_with("call_"));
  }
}

/// Streams and tells in one piece, compares, and returns the merged choices.
std::vector<Merged> both_ways(const ServedModel& model, AnswerSpec spec,
                              const std::vector<std::vector<TokenEvent>>& choices) {
  spec.stream = false;
  spec.include_usage = false;
  AnswerBuilder one_piece(model, spec);
  EXPECT_EQ(feed(one_piece, choices, 1), "");
  const std::vector<Merged> expected = whole(one_piece.response());
  spec.stream = true;
  AnswerBuilder stream(model, spec);
  const std::vector<Merged> streamed = test::merge(test::parse_sse(feed(stream, choices, 2)), choices.size());
  EXPECT_EQ(expected.size(), streamed.size());
  for (std::size_t i = 0; i < expected.size(); ++i) expect_same(expected[i], streamed[i]);
  return streamed;
}

TEST(ApiAnswer, StreamsThreeInterleavedChoices) {
  const ServedModel& model = plain_model().served;
  const std::string texts[] = {"The \"quick\" brown fox\n", "naïve 漢字 😀 text", "cut"};
  const std::vector<Merged> merged =
      both_ways(model, chat_spec(3, true),
                {play(model, texts[0], FinishReason::stop, 0), play(model, texts[1], FinishReason::stop, 1),
                 play(model, texts[2], FinishReason::length, 2)});
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(merged[i].content, texts[i]);
    EXPECT_EQ(merged[i].role, "assistant");
    EXPECT_EQ(merged[i].finish, i == 2 ? "length" : "stop");
  }
}

TEST(ApiAnswer, UsageComesLast) {
  const ServedModel& model = plain_model().served;
  AnswerBuilder builder(model, chat_spec(1, true));
  const auto events = play(model, "hello", FinishReason::stop);
  const std::vector<Json> chunks = test::parse_sse(feed(builder, {events}, 1));
  ASSERT_GE(chunks.size(), 4U);
  EXPECT_EQ(chunks.back(), "[DONE]");
  const Json& usage = chunks[chunks.size() - 2];
  EXPECT_EQ(usage["choices"], Json::array());
  EXPECT_EQ(usage["usage"].dump(), "{\"prompt_tokens\":5,\"completion_tokens\":" + std::to_string(events.size()) +
                                       ",\"total_tokens\":" + std::to_string(5 + events.size()) +
                                       ",\"prompt_tokens_details\":{\"cached_tokens\":2}}");
  for (std::size_t i = 0; i + 2 < chunks.size(); ++i) {
    EXPECT_TRUE(chunks[i].at("usage").is_null());
    EXPECT_EQ(chunks[i]["id"], builder.id());
    EXPECT_EQ(chunks[i]["created"], chunks[0]["created"]);
    EXPECT_EQ(chunks[i]["system_fingerprint"], model.fingerprint);
  }
  EXPECT_EQ(chunks[0]["choices"][0]["delta"], Json({{"role", "assistant"}, {"content", ""}}));
  EXPECT_TRUE(builder.id().starts_with("chatcmpl-"));
}

TEST(ApiAnswer, ChatLogprobsSpellTheContent) {
  const ServedModel& model = plain_model().served;
  AnswerSpec spec = chat_spec(1, true);
  spec.logprobs = 2;
  const std::string text = "naïve 漢字 😀 text";
  const std::vector<Merged> merged = both_ways(model, spec, {play(model, text, FinishReason::stop, 0, 3)});
  std::string bytes;
  for (const Json& token : merged[0].logprobs) {
    EXPECT_EQ(token["logprob"], -0.5);
    ASSERT_EQ(token["top_logprobs"].size(), 2U);
    EXPECT_EQ(token["top_logprobs"][0]["token"], token["token"]);
    EXPECT_EQ(token["top_logprobs"][1]["logprob"], -1.5);
    for (const Json& byte : token["bytes"]) bytes += static_cast<char>(byte.get<int>());
  }
  EXPECT_TRUE(bytes == text || bytes == " " + text) << bytes;  // the end of sequence is not among them
}

/// A stop string's own tokens are not told; the token that it begins in is.
TEST(ApiAnswer, LogprobsEndBeforeTheStopString) {
  const ServedModel& model = plain_model().served;
  AnswerSpec spec = chat_spec(1, true);
  spec.logprobs = 0;
  std::vector<TokenEvent> events;
  std::string told;
  for (const auto& [token, text] : {std::pair("A", "A"), std::pair("B", "B"), std::pair("#", ""), std::pair("#", "")}) {
    const auto id = model.tokenizer->token_to_id(token);
    ASSERT_TRUE(id.has_value());
    events.push_back({.token = *id, .text = text, .logprobs = TokenLogprobs{.logprob = -1.0f, .top = {}}});
  }
  events.back().finish = FinishReason::stop;
  events.back().stop_string = "##";
  const std::vector<Merged> merged = both_ways(model, spec, {events});
  for (const Json& token : merged[0].logprobs) told += token["token"].get<std::string>();
  EXPECT_EQ(told, "AB");
  EXPECT_EQ(merged[0].content, "AB");
}

TEST(ApiAnswer, SplitsReasoningAndToolCalls) {
  const ServedModel& model = tool_model().served;
  AnswerSpec spec = chat_spec(1, true);
  spec.parse = true;
  spec.tools = ToolMode::parse;
  const std::string calls =
      "<think>\nLet me see.\n</think>\n\nOne moment.\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, "
      "\"b\": \"x\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"stop\", \"arguments\": {}}\n</tool_call>";
  std::vector<Merged> merged = both_ways(model, spec, {play(model, calls, FinishReason::stop)});
  EXPECT_NE(merged[0].reasoning.find("Let me see."), std::string::npos);
  EXPECT_NE(merged[0].content.find("One moment."), std::string::npos);
  EXPECT_EQ(merged[0].content.find("tool_call"), std::string::npos);
  EXPECT_EQ(merged[0].finish, "tool_calls");
  ASSERT_EQ(merged[0].calls.size(), 2U);
  EXPECT_EQ(merged[0].calls[0]["name"], "add");
  EXPECT_EQ(Json::parse(merged[0].calls[0]["arguments"].get<std::string>()), Json({{"a", 1}, {"b", "x"}}));
  EXPECT_EQ(merged[0].calls[1]["name"], "stop");

  spec.parallel_tool_calls = false;
  merged = both_ways(model, spec, {play(model, calls, FinishReason::stop)});
  EXPECT_EQ(merged[0].calls.size(), 1U);
  merged = both_ways(model, spec, {play(model, "No tool.", FinishReason::stop)});
  EXPECT_EQ(merged[0].finish, "stop");
  EXPECT_EQ(merged[0].content, "No tool.");
}

TEST(ApiAnswer, ContentIsNullBesideCallsAlone) {
  const ServedModel& model = tool_model().served;
  AnswerSpec spec = chat_spec(1, false);
  spec.tools = ToolMode::named;
  spec.forced_tool = "add";
  AnswerBuilder builder(model, spec);
  feed(builder, {play(model, R"({"a": 1})", FinishReason::stop)}, 1);
  const Json message = Json::parse(builder.response())["choices"][0]["message"];
  EXPECT_TRUE(message["content"].is_null());
  EXPECT_EQ(message["tool_calls"][0]["function"].dump(), R"({"name":"add","arguments":"{\"a\": 1}"})");
}

TEST(ApiAnswer, ReadsForcedCalls) {
  const ServedModel& model = tool_model().served;
  AnswerSpec spec = chat_spec(2, true);
  spec.tools = ToolMode::required;
  const std::string text = R"([ {"name": "add", "arguments": {"list": [1, {"x": "}]\""}], "s": "a\\"}},)"
                           R"({"name":"caf\u00e9","arguments":"text, \"quoted\""} , {"name":"n","arguments":12}])";
  const std::vector<Merged> merged =
      both_ways(model, spec,
                {play(model, text, FinishReason::stop, 0),
                 play(model, R"([{"name": "add", "arguments": {"li)", FinishReason::length, 1)});
  ASSERT_EQ(merged[0].calls.size(), 3U);
  EXPECT_EQ(merged[0].calls[0]["name"], "add");
  EXPECT_EQ(merged[0].calls[0]["arguments"], R"({"list": [1, {"x": "}]\""}], "s": "a\\"})");
  EXPECT_EQ(merged[0].calls[1]["name"], "café");
  EXPECT_EQ(merged[0].calls[1]["arguments"], R"("text, \"quoted\"")");
  EXPECT_EQ(merged[0].calls[2]["arguments"], "12");
  EXPECT_EQ(merged[0].finish, "tool_calls");
  EXPECT_EQ(merged[0].content, "");
  EXPECT_EQ(merged[1].calls[0]["arguments"], R"({"li)");
  EXPECT_EQ(merged[1].finish, "length");
}

AnswerSpec completion_spec() {
  AnswerSpec spec;
  spec.endpoint = Endpoint::completion;
  spec.model = "test-model";
  spec.prompts = {{.tokens = 2, .text = ""}};
  spec.stop_ids = {1500};
  return spec;
}

std::vector<TokenEvent> prompt_events(const std::vector<std::int32_t>& ids) {
  std::vector<TokenEvent> events;
  for (const std::int32_t id : ids) {
    TokenEvent event{.token = id, .of_prompt = true};
    if (!events.empty()) event.logprobs = TokenLogprobs{.logprob = -2.0f, .top = {{7, -0.25f}}};
    events.push_back(std::move(event));
  }
  return events;
}

/// What harnesses that score given answers rely on: the prompt's tokens, then the generated one.
TEST(ApiAnswer, EchoesWithLegacyLogprobs) {
  const ServedModel& model = plain_model().served;
  const std::string prompt = "one two";
  const std::vector<std::int32_t> ids = *model.tokenizer->encode(prompt, false);
  for (const bool stream : {false, true}) {
    AnswerSpec spec = completion_spec();
    spec.echo = true;
    spec.logprobs = 1;
    spec.stream = stream;
    spec.prompts[0] = {.tokens = static_cast<std::int64_t>(ids.size()), .text = prompt};
    AnswerBuilder builder(model, spec);
    std::vector<TokenEvent> events = prompt_events(ids);
    for (TokenEvent& event : play(model, "!", FinishReason::length, 0, 1)) events.push_back(event);
    const std::size_t count = events.size();
    const std::string out = feed(builder, {events}, 1);
    Json choice;
    if (stream) {
      for (const Json& chunk : test::parse_sse(out)) {
        if (chunk == "[DONE]") continue;
        const Json& one = chunk["choices"][0];
        if (choice.is_null()) {
          choice = one;
          continue;
        }
        choice["text"] = choice["text"].get<std::string>() + one["text"].get<std::string>();
        choice["finish_reason"] = one["finish_reason"];
        if (one["logprobs"].is_null()) continue;
        for (const auto& [key, list] : one["logprobs"].items()) {
          for (const Json& value : list) choice["logprobs"][key].push_back(value);
        }
      }
    } else {
      choice = Json::parse(builder.response())["choices"][0];
    }
    EXPECT_TRUE(choice["text"].get<std::string>().starts_with(prompt));
    EXPECT_EQ(choice["finish_reason"], "length");
    const Json& logprobs = choice["logprobs"];
    for (const char* key : {"tokens", "token_logprobs", "top_logprobs", "text_offset"}) {
      ASSERT_EQ(logprobs[key].size(), count) << key;
    }
    EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
    EXPECT_TRUE(logprobs["top_logprobs"][0].is_null());
    EXPECT_EQ(logprobs["token_logprobs"][1], -2.0);
    EXPECT_EQ(logprobs["top_logprobs"][1].size(), 2U) << "the token itself is there beside the most likely one";
    EXPECT_EQ(logprobs["token_logprobs"][count - 1], -0.5);
    std::size_t offset = 0;
    for (std::size_t i = 0; i < count; ++i) {
      EXPECT_EQ(logprobs["text_offset"][i], offset);
      offset += logprobs["tokens"][i].get<std::string>().size();
    }
  }
}

TEST(ApiAnswer, EachChoiceEchoesThePromptThatTheFirstReports) {
  const ServedModel& model = plain_model().served;
  AnswerSpec spec = completion_spec();
  spec.echo = true;
  spec.logprobs = 1;
  spec.n = spec.choices = 2;
  spec.prompts[0] = {.tokens = 2, .text = "ab"};
  AnswerBuilder builder(model, spec);
  RequestSummary summary;
  std::string out;
  const TokenLogprobs logprobs{.logprob = -0.5f, .top = {}};
  // The second choice found the prompt in the cache and is early.
  builder.on(0, {.choice = 1, .token = 65, .text = "x", .logprobs = logprobs, .finish = FinishReason::length}, out);
  for (const TokenEvent& event : prompt_events({66, 67})) builder.on(0, event, out);
  builder.on(0, {.token = 65, .text = "y", .logprobs = logprobs, .finish = FinishReason::length, .summary = &summary},
             out);
  ASSERT_TRUE(builder.done());
  const Json response = Json::parse(builder.response());
  for (const std::size_t i : {0, 1}) {
    EXPECT_EQ(response["choices"][i]["text"], i == 0 ? "aby" : "abx");
    EXPECT_EQ(response["choices"][i]["logprobs"]["token_logprobs"].dump(), "[null,-2,-0.5]");
  }
}

TEST(ApiAnswer, LegacyLogprobsKeepTheEndOfSequence) {
  const ServedModel& model = plain_model().served;
  AnswerSpec spec = completion_spec();
  spec.logprobs = 1;
  AnswerBuilder builder(model, spec);
  const auto events = play(model, "hi", FinishReason::stop, 0, 1);
  feed(builder, {events}, 1);
  const Json choice = Json::parse(builder.response())["choices"][0];
  EXPECT_EQ(choice["logprobs"]["tokens"].size(), events.size());
  EXPECT_EQ(choice["logprobs"]["tokens"].back(), "<|endoftext|>");
  EXPECT_EQ(choice["text"], "hi");
}

TEST(ApiAnswer, TokensThatAreNoTextAreShownAsBytes) {
  const ServedModel& model = plain_model().served;
  AnswerSpec spec = completion_spec();
  spec.logprobs = 0;
  AnswerBuilder builder(model, spec);
  // U+00C4 U+0141 in the alphabet of byte-level tokenizers; 0xC3 alone is no character.
  const auto half = model.tokenizer->token_to_id("Ã");
  ASSERT_TRUE(half.has_value());
  TokenEvent event{.token = *half, .text = "\xEF\xBF\xBD", .logprobs = TokenLogprobs{}, .finish = FinishReason::length};
  feed(builder, {{event}}, 1);
  EXPECT_EQ(Json::parse(builder.response())["choices"][0]["logprobs"]["tokens"][0], "bytes:\\xc3");
}

TEST(ApiAnswer, BestOfTellsTheMostLikely) {
  const ServedModel& model = plain_model().served;
  AnswerSpec spec = completion_spec();
  spec.n = 2;
  spec.choices = 3;
  AnswerBuilder builder(model, spec);
  std::vector<std::vector<TokenEvent>> choices;
  const float logprobs[] = {-2.0f, -0.5f, -1.0f};
  for (std::int32_t i = 0; i < 3; ++i) {
    choices.push_back(play(model, std::string(1, static_cast<char>('a' + i)), FinishReason::length, i, 0));
    for (TokenEvent& event : choices.back()) event.logprobs->logprob = logprobs[i];
  }
  feed(builder, choices, 4);
  const Json response = Json::parse(builder.response());
  ASSERT_EQ(response["choices"].size(), 2U);
  EXPECT_EQ(response["choices"][0]["text"], "b");
  EXPECT_EQ(response["choices"][1]["text"], "c");
  EXPECT_EQ(response["choices"][1]["index"], 1);
  EXPECT_EQ(response["object"], "text_completion");
  EXPECT_TRUE(response["choices"][0]["logprobs"].is_null());
}

TEST(ApiAnswer, SeveralPromptsNumberTheirChoices) {
  const ServedModel& model = plain_model().served;
  AnswerSpec spec = completion_spec();
  spec.prompts.resize(2);
  AnswerBuilder builder(model, spec);
  std::string out;
  RequestSummary summary{.prompt_tokens = 4, .generated_tokens = 1};
  for (const std::size_t request : {1, 0}) {
    EXPECT_FALSE(builder.done());
    builder.on(
        request,
        {.token = 5, .text = request == 0 ? "first" : "second", .finish = FinishReason::length, .summary = &summary},
        out);
  }
  ASSERT_TRUE(builder.done());
  const Json response = Json::parse(builder.response());
  EXPECT_EQ(response["choices"][0]["text"], "first");
  EXPECT_EQ(response["choices"][1]["text"], "second");
  EXPECT_EQ(response["usage"]["total_tokens"], 10);
}

TEST(ApiAnswer, FailuresAreTold) {
  const ServedModel& model = plain_model().served;
  std::string out;
  AnswerBuilder whole_answer(model, chat_spec(1, false));
  whole_answer.on(0, {.finish = FinishReason::error, .error = "the grammar is stuck"}, out);
  EXPECT_TRUE(whole_answer.done());
  EXPECT_EQ(whole_answer.error()->status, 500);
  EXPECT_EQ(out, "");
  for (const auto& [kind, status] :
       {std::pair(ErrorKind::invalid, 400), std::pair(ErrorKind::busy, 429), std::pair(ErrorKind::unavailable, 503)}) {
    AnswerBuilder of_kind(model, chat_spec(1, false));
    of_kind.on(0, {.finish = FinishReason::error, .error = "why", .error_kind = kind}, out);
    EXPECT_EQ(of_kind.error()->status, status);
    EXPECT_EQ(of_kind.error()->message, "why");
  }
  AnswerBuilder stream(model, chat_spec(2, true));
  stream.on(0, {.choice = 1, .finish = FinishReason::cancelled}, out);
  stream.on(0, {.choice = 0, .finish = FinishReason::cancelled}, out);
  const std::vector<Json> chunks = test::parse_sse(out);
  ASSERT_EQ(chunks.size(), 2U) << "once";
  EXPECT_EQ(chunks[0]["error"]["code"], "service_unavailable");
  EXPECT_EQ(chunks[1], "[DONE]");
}

TEST(ApiAnswer, EmbeddingsAreUnitVectors) {
  const ServedModel& model = plain_model().served;
  const RequestSummary summary{.prompt_tokens = 3};
  for (const bool base64 : {false, true}) {
    AnswerSpec spec;
    spec.endpoint = Endpoint::embedding;
    spec.model = "test-model";
    spec.prompts.resize(1);
    spec.base64 = base64;
    AnswerBuilder builder(model, spec);
    std::string out;
    builder.on(0, {.finish = FinishReason::stop, .embedding = {3.0f, 0.0f, -4.0f}, .summary = &summary}, out);
    ASSERT_TRUE(builder.done());
    const Json response = Json::parse(builder.response());
    EXPECT_EQ(response["usage"].dump(), R"({"prompt_tokens":3,"total_tokens":3})");
    const Json& embedding = response["data"][0]["embedding"];
    if (base64) {
      EXPECT_EQ(embedding, "mpkZPwAAAADNzEy/");  // 0.6, 0, -0.8 as little-endian floats
    } else {
      EXPECT_EQ(embedding.dump(), "[0.6,0,-0.8]");
    }
  }
}

TEST(ApiAnswer, ModelsAreListed) {
  const ServedModel& model = plain_model().served;
  const Json list = Json::parse(models_json(model));
  ASSERT_EQ(list["data"].size(), 2U);
  EXPECT_EQ(list["data"][1]["id"], "alias");
  EXPECT_EQ(list["data"][0]["max_model_len"], 1000);
  EXPECT_EQ(Json::parse(*model_json(model, "alias"))["object"], "model");
  EXPECT_EQ(model_json(model, "other").error().status, 404);
}

}  // namespace
}  // namespace millrace
