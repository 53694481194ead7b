#include "bench/openai.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <vector>

namespace millrace::bench {
namespace {

using nlohmann::json;

TEST(RequestWriter, Completions) {
  RequestTemplate common{.model = "a \"model\"", .top_p = 0.5, .seed = 100, .extra = R"({"cache_prompt": false})"};
  const auto writer = RequestWriter::make(common);
  ASSERT_TRUE(writer.ok());
  EXPECT_EQ(writer->path(), "/v1/completions");
  const std::vector<std::int32_t> ids{5, 0, 2147483647};
  EXPECT_EQ(json::parse(writer->body(ids, 7, 3)),
            json::parse(R"({"model": "a \"model\"", "stream": true, "stream_options": {"include_usage": true},
                            "temperature": 0.0, "top_p": 0.5, "ignore_eos": true, "cache_prompt": false,
                            "max_tokens": 7, "seed": 103, "prompt": [5, 0, 2147483647]})"));
  EXPECT_EQ(json::parse(writer->body("say \"x\"\n\xff", 1, 0)).at("prompt"), "say \"x\"\n\xEF\xBF\xBD");
}

TEST(RequestWriter, ChatAndWhatIsLeftOut) {
  const auto writer = RequestWriter::make({.endpoint = Endpoint::chat, .model = "m", .ignore_eos = false});
  ASSERT_TRUE(writer.ok());
  EXPECT_EQ(writer->path(), "/v1/chat/completions");
  EXPECT_EQ(json::parse(writer->body("hello", 1, 0)),
            json::parse(R"({"model": "m", "stream": true, "stream_options": {"include_usage": true}, "temperature": 0.0,
                            "max_tokens": 1, "messages": [{"role": "user", "content": "hello"}]})"));
  for (const char* extra : {"[1]", "{", "7"}) EXPECT_FALSE(RequestWriter::make({.extra = extra}).ok());
}

TEST(ParseChunk, TokensAreCountedWhereThereAreSome) {
  const std::pair<const char*, std::int64_t> cases[] = {
      {R"({"choices":[{"text":"a","finish_reason":null}]})", 1},
      {R"({"choices":[{"text":"","finish_reason":null}]})", 1},  // half a character
      {R"({"choices":[{"text":"","finish_reason":"length"}]})", 0},
      {R"({"choices":[{"text":"z","finish_reason":"length"}]})", 1},
      {R"({"choices":[{"text":"abc","token_ids":[1,2,3]}]})", 3},
      {R"({"choices":[{"text":"abc","tokens":[1,2]}]})", 2},
      {R"({"choices":[{"text":"","token_ids":[],"finish_reason":null}]})", 0},
      {R"({"choices":[]})", 0},
      {R"({"choices":null})", 0},
      {R"({"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]})", 0},
      {R"({"choices":[{"delta":{"role":"assistant","content":"a"},"finish_reason":null}]})", 1},
      {R"({"choices":[{"delta":{"content":"a"}}]})", 1},
      {R"({"choices":[{"delta":{"content":""}}]})", 1},
      {R"({"choices":[{"delta":{"content":null,"reasoning_content":"hm"}}]})", 1},
      {R"({"choices":[{"delta":{"tool_calls":[{"index":0}]}}]})", 1},
      {R"({"choices":[{"delta":{},"finish_reason":"stop"}]})", 0},
  };
  for (const auto& [data, tokens] : cases) {
    const auto chunk = parse_chunk(data);
    ASSERT_TRUE(chunk.ok()) << data;
    EXPECT_EQ(chunk->tokens, tokens) << data;
    EXPECT_EQ(chunk->finished, json::parse(data).dump().find("finish_reason\":\"") != std::string::npos) << data;
  }
}

TEST(ParseChunk, UsageAndErrors) {
  auto chunk = parse_chunk(
      R"({"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":8}}})");
  ASSERT_TRUE(chunk.ok() && chunk->usage);
  EXPECT_EQ(chunk->usage->prompt_tokens, 9);
  EXPECT_EQ(chunk->usage->completion_tokens, 4);
  EXPECT_EQ(chunk->usage->cached_tokens, 8);
  chunk = parse_chunk(R"({"choices":[],"usage":{"prompt_tokens":9,"prompt_tokens_details":null}})");
  ASSERT_TRUE(chunk.ok() && chunk->usage);
  EXPECT_FALSE(chunk->usage->cached_tokens);
  EXPECT_FALSE(chunk->usage->cost_usd);
  chunk = parse_chunk(
      R"({"choices":[],"usage":{"prompt_tokens":9,"millrace":{"cost_usd":2e-06,"energy_j":3.5,"node":"desk"}}})");
  ASSERT_TRUE(chunk.ok() && chunk->usage);
  EXPECT_EQ(chunk->usage->cost_usd, 2e-6);
  EXPECT_EQ(chunk->usage->energy_j, 3.5);
  EXPECT_EQ(chunk->usage->node, "desk");
  EXPECT_EQ(parse_chunk(R"({"error":{"message":"no\nroom"}})")->error, "no room");
  EXPECT_EQ(parse_chunk(R"({"error":"broken"})")->error, "broken");
  for (const char* data :
       {"", "[]", "{", "null", R"({"choices":{}})", R"({"choices":[1]})", R"({"choices":[{"delta":[]}]})",
        R"({"usage":{"prompt_tokens":-1}})", R"({"usage":{"prompt_tokens":1e99}})"}) {
    EXPECT_FALSE(parse_chunk(data).ok()) << data;
  }
}

TEST(ErrorMessage, EveryShape) {
  EXPECT_EQ(error_message(R"({"error":{"message":"queue is full","type":"x"}})"), "queue is full");
  EXPECT_EQ(error_message(R"({"error":"plain"})"), "plain");
  EXPECT_EQ(error_message(R"({"object":"error","message":"vllm"})"), "vllm");
  EXPECT_EQ(error_message("<html>\r\nno"), "<html>  no");
  EXPECT_EQ(error_message(std::string(10000, 'x')).size(), 300u);
}

TEST(ParseModels, OursAndLlamaCpps) {
  const auto ours = parse_models(R"({"object":"list","data":[{"id":"m","vocab_size":512},{"id":"n"}]})");
  ASSERT_TRUE(ours.ok());
  EXPECT_EQ(ours->name, "m");
  EXPECT_EQ(ours->vocab, 512);
  EXPECT_EQ(parse_models(R"({"data":[{"id":"m","meta":{"n_vocab":32000}}]})")->vocab, 32000);
  EXPECT_EQ(parse_models(R"({"data":[{"id":"m","meta":null}]})")->vocab, 0);
  for (const char* body :
       {"", "{}", R"({"data":[]})", R"({"data":{}})", R"({"data":[{"id":7}]})", R"({"data":["m"]})"}) {
    EXPECT_FALSE(parse_models(body).ok()) << body;
  }
}

}  // namespace
}  // namespace millrace::bench
