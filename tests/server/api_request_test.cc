#include "server/api_request.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "server/api_fixture.h"

namespace millrace {
namespace {

using test::plain_model;
using test::tool_model;

struct Bad {
  std::string fields;  // of the body, beside model and prompt
  int status;
  std::string param, code;
};

template <typename Parse>
void expect_refused(const std::vector<Bad>& table, const std::string& rest, Parse parse) {
  for (const Bad& bad : table) {
    const std::string body = "{" + bad.fields + (bad.fields.empty() || rest.empty() ? "" : ",") + rest + "}";
    const auto parsed = parse(body);
    ASSERT_FALSE(parsed.ok()) << body;
    const ApiError& error = parsed.error();
    EXPECT_EQ(error.status, bad.status) << body << error.json();
    EXPECT_EQ(error.type, "invalid_request_error") << body;
    EXPECT_EQ(error.param.value_or("null"), bad.param) << body << error.json();
    EXPECT_EQ(error.code.value_or("null"), bad.code) << body << error.json();
    EXPECT_EQ(error.message.find('\n'), std::string::npos);
    EXPECT_TRUE(Json::accept(error.json()));
  }
}

TEST(ApiRequest, RefusesWhatChatAndCompletionsShare) {
  const std::vector<Bad> table = {
      {R"("model":7)", 400, "model", "invalid_type"},
      {R"("model":"gpt-4")", 404, "null", "model_not_found"},
      {R"("temperature":"hot")", 400, "temperature", "invalid_type"},
      {R"("temperature":2.1)", 400, "temperature", "decimal_above_max_value"},
      {R"("temperature":-0.1)", 400, "temperature", "decimal_below_min_value"},
      {R"("top_p":1.5)", 400, "top_p", "decimal_above_max_value"},
      {R"("top_p":[])", 400, "top_p", "invalid_type"},
      {R"("top_k":-2)", 400, "top_k", "integer_below_min_value"},
      {R"("top_k":1.5)", 400, "top_k", "invalid_type"},
      {R"("min_p":-1)", 400, "min_p", "decimal_below_min_value"},
      {R"("repetition_penalty":0)", 400, "repetition_penalty", "decimal_below_min_value"},
      {R"("presence_penalty":3)", 400, "presence_penalty", "decimal_above_max_value"},
      {R"("frequency_penalty":-2.5)", 400, "frequency_penalty", "decimal_below_min_value"},
      {R"("n":0)", 400, "n", "integer_below_min_value"},
      {R"("n":129)", 400, "n", "integer_above_max_value"},
      {R"("n":true)", 400, "n", "invalid_type"},
      {R"("seed":"x")", 400, "seed", "invalid_type"},
      {R"("seed":9223372036854775808)", 400, "seed", "integer_above_max_value"},
      {R"("max_tokens":-1)", 400, "max_tokens", "integer_below_min_value"},
      {R"("max_tokens":1e3)", 400, "max_tokens", "invalid_type"},
      {R"("max_tokens":100000)", 400, "PROMPT", "context_length_exceeded"},
      {R"("stop":5)", 400, "stop", "invalid_type"},
      {R"("stop":["a",5])", 400, "stop[1]", "invalid_type"},
      {R"("stop":["1","2","3","4","5","6","7","8","9","0","1","2","3","4","5","6","7"])", 400, "stop", "invalid_value"},
      {"\"stop\":\"" + std::string(2000, 'x') + "\"", 400, "stop", "invalid_value"},
      {R"("stop_token_ids":[1536])", 400, "stop_token_ids[0]", "invalid_value"},
      {R"("stop_token_ids":["a"])", 400, "stop_token_ids[0]", "invalid_type"},
      {R"("ignore_eos":1)", 400, "ignore_eos", "invalid_type"},
      {R"("logit_bias":[])", 400, "logit_bias", "invalid_type"},
      {R"("logit_bias":{"x":1})", 400, "logit_bias", "invalid_value"},
      {R"("logit_bias":{"99999":1})", 400, "logit_bias", "invalid_value"},
      {R"("logit_bias":{"5":101})", 400, "logit_bias.5", "decimal_above_max_value"},
      {R"("stream":"yes")", 400, "stream", "invalid_type"},
      {R"("stream_options":{"include_usage":true})", 400, "stream_options", "invalid_value"},
      {R"("stream":true,"stream_options":{"include_usage":1})", 400, "stream_options.include_usage", "invalid_type"},
      {R"("user":5)", 400, "user", "invalid_type"},
      {R"("priority":0.5)", 400, "priority", "invalid_type"},
      {R"("cache_salt":{})", 400, "cache_salt", "invalid_type"},
      {R"("response_format":"json")", 400, "response_format", "invalid_type"},
      {R"("response_format":{})", 400, "response_format.type", "missing_required_parameter"},
      {R"("response_format":{"type":"yaml"})", 400, "response_format.type", "invalid_value"},
      {R"("response_format":{"type":"json_schema"})", 400, "response_format.json_schema", "missing_required_parameter"},
      {R"("response_format":{"type":"json_schema","json_schema":{"name":"x"}})", 400,
       "response_format.json_schema.schema", "missing_required_parameter"},
      {R"("response_format":{"type":"json_schema","json_schema":{"schema":{"type":"nonsense"}}})", 400,
       "response_format.json_schema.schema", "invalid_value"},
      {R"("guided_regex":"(")", 400, "guided_regex", "invalid_value"},
      {R"("guided_regex":5)", 400, "guided_regex", "invalid_type"},
      {R"("guided_grammar":"start: nowhere")", 400, "guided_grammar", "invalid_value"},
      {R"("guided_choice":[])", 400, "guided_choice", "invalid_value"},
      {R"("guided_choice":["a",1])", 400, "guided_choice", "invalid_type"},
      {R"("guided_json":true)", 400, "guided_json", "invalid_type"},
      {R"("guided_json":"{")", 400, "guided_json", "invalid_value"},
      {R"("guided_regex":"a","guided_choice":["a"])", 400, "guided_choice", "invalid_value"},
      {R"("structured_outputs":{"regex":[]})", 400, "structured_outputs.regex", "invalid_type"},
  };
  for (const auto& [rest, param] : {std::pair(R"("messages":[{"role":"user","content":"hi"}])", "messages"),
                                    std::pair(R"("prompt":"hi there")", "prompt")}) {
    std::vector<Bad> rows = table;
    for (Bad& row : rows) {
      if (row.param == "PROMPT") row.param = param;
    }
    const bool chat = std::string(param) == "messages";
    expect_refused(rows, rest, [&](const std::string& body) {
      return chat ? parse_chat(body, plain_model().served) : parse_completion(body, plain_model().served);
    });
  }
}

TEST(ApiRequest, RefusesBadChats) {
  const std::string user = R"("messages":[{"role":"user","content":"hi"}])";
  const std::string tool = R"("tools":[{"type":"function","function":{"name":"f"}}])";
  const std::string long_text(20'000, 'x');
  expect_refused(
      {
          {"", 400, "messages", "missing_required_parameter"},
          {user + R"(,"max_tokens":0)", 400, "max_tokens", "integer_below_min_value"},
          {R"("messages":"hi")", 400, "messages", "invalid_type"},
          {R"("messages":[])", 400, "messages", "invalid_value"},
          {R"("messages":["hi"])", 400, "messages[0]", "invalid_type"},
          {R"("messages":[{"content":"hi"}])", 400, "messages[0].role", "missing_required_parameter"},
          {R"("messages":[{"role":"wizard","content":"hi"}])", 400, "messages[0].role", "invalid_value"},
          {R"("messages":[{"role":"user"}])", 400, "messages[0].content", "missing_required_parameter"},
          {R"("messages":[{"role":"user","content":null}])", 400, "messages[0].content", "missing_required_parameter"},
          {R"("messages":[{"role":"user","content":5}])", 400, "messages[0].content", "invalid_type"},
          {R"("messages":[{"role":"user","content":["x"]}])", 400, "messages[0].content[0]", "invalid_type"},
          {R"("messages":[{"role":"user","content":[{"type":"text"}]}])", 400, "messages[0].content[0].text",
           "missing_required_parameter"},
          {R"("messages":[{"role":"user","content":[{"type":"text","text":"x"},)"
           R"({"type":"image_url","image_url":{"url":"http://x"}}]}])",
           400, "messages[0].content[1].type", "invalid_value"},
          {R"("messages":[{"role":"assistant","tool_calls":[{"id":"a","type":"function"}]}])", 400,
           "messages[0].tool_calls[0].function", "missing_required_parameter"},
          {R"("messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"[1"}}]}])", 400,
           "messages[0].tool_calls[0].function.arguments", "invalid_value"},
          {"\"messages\":[{\"role\":\"user\",\"content\":\"" + long_text + "\"}]", 400, "messages",
           "context_length_exceeded"},
          {user + R"(,"max_completion_tokens":"x")", 400, "max_completion_tokens", "invalid_type"},
          {user + R"(,"max_completion_tokens":999)", 400, "messages", "context_length_exceeded"},
          {user + R"(,"logprobs":5)", 400, "logprobs", "invalid_type"},
          {user + R"(,"logprobs":true,"top_logprobs":21)", 400, "top_logprobs", "integer_above_max_value"},
          {user + R"(,"top_logprobs":2)", 400, "top_logprobs", "invalid_value"},
          {user + R"(,"chat_template":"{{ x }}")", 400, "chat_template", "unsupported_parameter"},
          {user + R"(,"chat_template_kwargs":[])", 400, "chat_template_kwargs", "invalid_type"},
          {user + R"(,"continue_final_message":true,"add_generation_prompt":true)", 400, "continue_final_message",
           "invalid_value"},
          {user + R"(,"tools":{})", 400, "tools", "invalid_type"},
          {user + R"(,"tools":[5])", 400, "tools[0]", "invalid_type"},
          {user + R"(,"tools":[{"type":"custom","custom":{"name":"x"}}])", 400, "tools[0].type", "invalid_value"},
          {user + R"(,"tools":[{"type":"function"}])", 400, "tools[0].function", "missing_required_parameter"},
          {user + R"(,"tools":[{"type":"function","function":{}}])", 400, "tools[0].function.name",
           "missing_required_parameter"},
          {user + R"(,"tools":[{"type":"function","function":{"name":"a b"}}])", 400, "tools[0].function.name",
           "invalid_value"},
          {user + R"(,"tools":[{"type":"function","function":{"name":"f","parameters":[]}}])", 400,
           "tools[0].function.parameters", "invalid_type"},
          {user + R"(,"tools":[{"type":"function","function":{"name":"f"}},)"
                  R"({"type":"function","function":{"name":"f"}}])",
           400, "tools[1].function.name", "invalid_value"},
          {user + R"(,"tool_choice":"required")", 400, "tool_choice", "invalid_value"},
          {user + "," + tool + R"(,"tool_choice":"maybe")", 400, "tool_choice", "invalid_value"},
          {user + "," + tool + R"(,"tool_choice":5)", 400, "tool_choice", "invalid_type"},
          {user + "," + tool + R"(,"tool_choice":{"type":"function"})", 400, "tool_choice.function",
           "missing_required_parameter"},
          {user + "," + tool + R"(,"tool_choice":{"type":"function","function":{"name":"g"}})", 400,
           "tool_choice.function.name", "invalid_value"},
          {user + "," + tool + R"(,"tool_choice":"required","guided_regex":"a")", 400, "guided_regex", "invalid_value"},
          {user + "," + tool + R"(,"parallel_tool_calls":"no")", 400, "parallel_tool_calls", "invalid_type"},
          {user + R"(,"functions":[{"name":"f"}])", 400, "functions", "invalid_value"},
      },
      "", [](const std::string& body) { return parse_chat(body, tool_model().served); });
  // Only a template with tools can leave the choice to the model.
  expect_refused({{tool, 400, "tools", "invalid_value"}}, user,
                 [](const std::string& body) { return parse_chat(body, plain_model().served); });
}

TEST(ApiRequest, RefusesBadCompletions) {
  expect_refused(
      {
          {"", 400, "prompt", "missing_required_parameter"},
          {R"("prompt":{})", 400, "prompt", "invalid_type"},
          {R"("prompt":[])", 400, "prompt", "invalid_value"},
          {R"("prompt":"")", 400, "prompt", "invalid_value"},
          {R"("prompt":[1,"a"])", 400, "prompt[1]", "invalid_type"},
          {R"("prompt":[1,-1])", 400, "prompt[1]", "invalid_value"},
          {R"("prompt":[1,18446744073709551615])", 400, "prompt[1]", "invalid_value"},
          {R"("prompt":["a",5])", 400, "prompt[1]", "invalid_type"},
          {R"("prompt":[[1],[]])", 400, "prompt[1]", "invalid_value"},
          {R"("prompt":[[1],[1536]])", 400, "prompt[1][0]", "invalid_value"},
          {R"("prompt":[null])", 400, "prompt[0]", "invalid_type"},
          {R"("prompt":"hi","logprobs":true)", 400, "logprobs", "invalid_type"},
          {R"("prompt":"hi","logprobs":21)", 400, "logprobs", "integer_above_max_value"},
          {R"("prompt":"hi","echo":"yes")", 400, "echo", "invalid_type"},
          {R"("prompt":"hi","n":3,"best_of":2)", 400, "best_of", "invalid_value"},
          {R"("prompt":"hi","best_of":2,"stream":true)", 400, "best_of", "invalid_value"},
          {R"("prompt":"hi","suffix":"there")", 400, "suffix", "unsupported_parameter"},
          {R"("prompt":["a","b"],"n":128,"best_of":128,"max_tokens":1000)", 400, "prompt", "context_length_exceeded"},
      },
      "", [](const std::string& body) {
        std::string spaced = body;  // without special tokens an empty text has no token
        if (spaced.size() > 2) spaced.insert(1, R"("add_special_tokens":false,)");
        return parse_completion(spaced, plain_model().served);
      });
}

TEST(ApiRequest, RefusesBadEmbeddings) {
  expect_refused(
      {
          {"", 400, "input", "missing_required_parameter"},
          {R"("input":7)", 400, "input", "invalid_type"},
          {R"("input":[])", 400, "input", "invalid_value"},
          {R"("input":"a","model":"b")", 404, "null", "model_not_found"},
          {R"("input":"a","encoding_format":"hex")", 400, "encoding_format", "invalid_value"},
          {R"("input":"a","dimensions":3)", 400, "dimensions", "invalid_value"},
          {R"("input":"a","pooling":"max")", 400, "pooling", "invalid_value"},
          {R"("input":"a","normalize":1)", 400, "normalize", "invalid_type"},
          {"\"input\":\"" + std::string(20'000, 'x') + "\"", 400, "input", "context_length_exceeded"},
      },
      "", [](const std::string& body) { return parse_embeddings(body, plain_model().served); });
}

TEST(ApiRequest, ContextLengthErrorHasTheFigures) {
  const auto call = parse_completion(R"({"prompt":[1,2,3],"max_tokens":998})", plain_model().served);
  ASSERT_FALSE(call.ok());
  EXPECT_EQ(call.error().message,
            "This model's maximum context length is 1000 tokens; 1001 were requested (3 in the prompt, 998 for the "
            "answer).");
  EXPECT_TRUE(parse_completion(R"({"prompt":[1,2,3],"max_tokens":997})", plain_model().served).ok());
}

TEST(ApiRequest, ReadsSampling) {
  const auto call = parse_chat(
      R"({"model":"alias","messages":[{"role":"user","content":"hi"}],"temperature":0.5,"top_p":0.25,"top_k":7,
          "min_p":0.125,"repetition_penalty":1.5,"presence_penalty":1,"frequency_penalty":-1,"seed":-3,"n":3,
          "stop":["x","","yz"],"stop_token_ids":[9],"logit_bias":{"5":-100,"6":2.5},"max_tokens":7,
          "max_completion_tokens":5,"priority":-4,"cache_salt":"s","user":"u","logprobs":true,"top_logprobs":2,
          "stream":true,"stream_options":{"include_usage":true},"made_up":[1,{"a":null}]})",
      plain_model().served);
  ASSERT_TRUE(call.ok()) << call.error().json();
  ASSERT_EQ(call->requests.size(), 1U);
  const Request& request = call->requests[0];
  EXPECT_EQ(request.sampling.temperature, 0.5f);
  EXPECT_EQ(request.sampling.top_p, 0.25f);
  EXPECT_EQ(request.sampling.top_k, 7);
  EXPECT_EQ(request.sampling.min_p, 0.125f);
  EXPECT_EQ(request.sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(request.sampling.presence_penalty, 1.0f);
  EXPECT_EQ(request.sampling.frequency_penalty, -1.0f);
  EXPECT_EQ(request.sampling.seed, static_cast<std::uint64_t>(-3));
  EXPECT_EQ(request.sampling.logit_bias, (std::map<std::int32_t, float>{{5, -100.0f}, {6, 2.5f}}));
  EXPECT_EQ(request.choices, 3);
  EXPECT_EQ(request.stop, (std::vector<std::string>{"x", "yz"}));
  EXPECT_EQ(request.stop_ids, (std::vector<std::int32_t>{1500, 9}));
  EXPECT_EQ(request.max_new_tokens, 5);
  EXPECT_EQ(request.priority, -4);
  EXPECT_EQ(request.cache_salt, "s");
  EXPECT_EQ(request.logprobs, 2);
  EXPECT_EQ(call->user, "u");
  EXPECT_EQ(call->answer.model, "alias");
  EXPECT_EQ(call->answer.n, 3);
  EXPECT_TRUE(call->answer.stream && call->answer.include_usage);
}

TEST(ApiRequest, FillsInDefaults) {
  ServedModel model = std::move(*test::make_model(test::kPlainTemplate, "byte_level_bpe")).served;
  model.tokenizer = plain_model().served.tokenizer;
  model.chat_template = plain_model().served.chat_template;
  const std::string body = R"({"messages":[{"role":"user","content":"hi"}],"top_p":0,"stop":null})";
  auto call = parse_chat(body, model);
  ASSERT_TRUE(call.ok());
  EXPECT_EQ(call->requests[0].sampling.temperature, 1.0f);
  EXPECT_GT(call->requests[0].sampling.top_p, 0.0f);
  EXPECT_TRUE(validate(call->requests[0].sampling, model.vocab).ok());
  EXPECT_EQ(call->requests[0].max_new_tokens,
            model.max_sequence_tokens - static_cast<std::int64_t>(call->requests[0].prompt.size()));
  EXPECT_EQ(call->answer.model, "test-model");
  // Two requests without a seed draw different ones.
  EXPECT_NE(parse_chat(body, model)->requests[0].sampling.seed, call->requests[0].sampling.seed);
  model.defaults = SamplingDefaults::from(nlohmann::json::parse(
      R"({"temperature":0.6,"top_k":20,"top_p":0.95,"min_p":"x","repetition_penalty":-1,"do_sample":true})"));
  call = parse_chat(R"({"messages":[{"role":"user","content":"hi"}]})", model);
  EXPECT_EQ(call->requests[0].sampling.temperature, 0.6f);
  EXPECT_EQ(call->requests[0].sampling.top_k, 20);
  EXPECT_EQ(call->requests[0].sampling.top_p, 0.95f);
  EXPECT_EQ(call->requests[0].sampling.min_p, 0.0f);
  EXPECT_EQ(call->requests[0].sampling.repetition_penalty, 1.0f);
  call = parse_completion(R"({"prompt":"hi","ignore_eos":true})", model);
  EXPECT_EQ(call->requests[0].max_new_tokens, 16);
  EXPECT_TRUE(call->requests[0].stop_ids.empty());
}

TEST(ApiRequest, ReadsPromptsOfEveryKind) {
  const ServedModel& model = plain_model().served;
  const auto one = model.tokenizer->encode("one", true), two = model.tokenizer->encode("two", true);
  const auto prompts = [&](const std::string& prompt) {
    const auto call = parse_completion("{\"prompt\":" + prompt + "}", model);
    std::vector<std::vector<std::int32_t>> ids;
    for (const Request& request : call->requests) ids.push_back(request.prompt);
    EXPECT_EQ(call->answer.prompts.size(), ids.size());
    return ids;
  };
  using Lists = std::vector<std::vector<std::int32_t>>;
  EXPECT_EQ(prompts("\"one\""), (Lists{*one}));
  EXPECT_EQ(prompts("[\"one\",\"two\"]"), (Lists{*one, *two}));
  EXPECT_EQ(prompts("[5,6]"), (Lists{{5, 6}}));
  EXPECT_EQ(prompts("[[5,6],[7]]"), (Lists{{5, 6}, {7}}));
}

TEST(ApiRequest, EchoAsksForThePromptsLogprobs) {
  const ServedModel& model = plain_model().served;
  auto call = parse_completion(R"({"prompt":[3,4],"echo":true,"logprobs":1,"max_tokens":0})", model);
  ASSERT_TRUE(call.ok()) << call.error().json();
  EXPECT_EQ(call->requests[0].max_new_tokens, 0);
  EXPECT_TRUE(call->requests[0].prompt_logprobs);
  EXPECT_EQ(call->requests[0].logprobs, 1);
  const std::int32_t ids[] = {3, 4};
  EXPECT_EQ(call->answer.prompts[0].text, *model.tokenizer->decode(ids, true));
  call = parse_completion(R"({"prompt":"hi","best_of":4,"n":2})", model);
  EXPECT_EQ(call->requests[0].choices, 4);
  EXPECT_EQ(call->requests[0].logprobs, 0);
  EXPECT_EQ(call->answer.logprobs, -1);
}

TEST(ApiRequest, ReadsEmbeddings) {
  const auto call = parse_embeddings(
      R"({"input":["a","b"],"encoding_format":"base64","dimensions":4,"pooling":"last"})", plain_model().served);
  ASSERT_TRUE(call.ok()) << call.error().json();
  ASSERT_EQ(call->requests.size(), 2U);
  EXPECT_EQ(call->requests[1].task, Task::embed_last);
  EXPECT_TRUE(call->answer.base64);
  EXPECT_EQ(parse_embeddings(R"({"input":[1,2]})", plain_model().served)->requests[0].task, Task::embed_mean);
}

}  // namespace
}  // namespace millrace
