// Lines of batch files: what is read of a request, what is refused and how, and that records say whom they answer.

#include "server/batch_line.h"

#include <gtest/gtest.h>

#include "server/api_json.h"

namespace millrace {
namespace {

Json seed_of(const std::string& line) {
  const BatchLine read = read_batch_line(line);
  EXPECT_FALSE(read.problem) << read.problem->message;
  return Json::parse(read.body).value("seed", Json());
}

TEST(BatchLine, ReadsARequest) {
  const BatchLine line = read_batch_line(
      R"({"custom_id":"a \u00e9","method":"POST","url":"/v1/chat/completions","body":{"seed":7,"z":1,"a":[1.5,"é"]},"more":1})");
  ASSERT_FALSE(line.problem) << line.problem->message;
  EXPECT_EQ(line.custom_id, "a é");
  EXPECT_EQ(line.endpoint, Endpoint::chat);
  EXPECT_EQ(line.body, R"({"seed":7,"z":1,"a":[1.5,"é"]})");
  EXPECT_EQ(read_batch_line(R"({"custom_id":"b","method":"POST","url":"/v1/completions","body":{}})").endpoint,
            Endpoint::completion);
  const BatchLine embedding =
      read_batch_line(R"({"custom_id":"b","method":"POST","url":"/v1/embeddings","body":{"input":"x"}})");
  EXPECT_EQ(embedding.endpoint, Endpoint::embedding);
  EXPECT_EQ(embedding.body, R"({"input":"x"})");
}

TEST(BatchLine, ASeedThatIsMissingIsMadeOfTheName) {
  const auto line = [](const char* name, const char* body) {
    return std::string(R"({"custom_id":")") + name + R"(","method":"POST","url":"/v1/completions","body":)" + body +
           "}";
  };
  EXPECT_EQ(seed_of(line("a", "{}")), batch_seed("a"));
  EXPECT_EQ(seed_of(line("a", R"({"seed":null})")), batch_seed("a"));
  EXPECT_EQ(seed_of(line("a", R"({"seed":0})")), 0);
  EXPECT_NE(batch_seed("a"), batch_seed("b"));
  EXPECT_GE(batch_seed("b"), 0);
  // SHA-256 of "a" begins with ca978112ca1bbdca (FIPS 180-4 of one byte 0x61).
  EXPECT_EQ(batch_seed("a"), 0xca978112ca1bbdca >> 1);
}

TEST(BatchLine, WhatIsNoRequestSaysWhy) {
  struct Case {
    const char* line;
    const char* code;
    const char* message;
    bool named;
  };
  for (const Case& bad : {
           Case{"{", "invalid_json_line", "line is not valid JSON", false},
           Case{"[1]", "invalid_json_line", "line is an array", false},
           Case{"{\"custom_id\":\"\xff\"}", "invalid_json_line", "line is not UTF-8", false},
           Case{R"({"method":"POST","url":"/v1/completions","body":{}})", "missing_required_parameter", "custom_id",
                false},
           Case{R"({"custom_id":5,"method":"POST","url":"/v1/completions","body":{}})", "invalid_type", "custom_id",
                false},
           Case{R"({"custom_id":"a","url":"/v1/completions","body":{}})", "missing_required_parameter", "method", true},
           Case{R"({"custom_id":"a","method":"GET","url":"/v1/completions","body":{}})", "invalid_value", "'GET'",
                true},
           Case{R"({"custom_id":"a","method":"POST","body":{}})", "missing_required_parameter", "url", true},
           Case{R"({"custom_id":"a","method":"POST","url":"/v1/images","body":{}})", "invalid_value", "/v1/images",
                true},
           Case{R"({"custom_id":"a","method":"POST","url":"/v1/completions"})", "missing_required_parameter", "body",
                true},
           Case{R"({"custom_id":"a","method":"POST","url":"/v1/completions","body":"x"})", "invalid_type", "body",
                true},
       }) {
    const BatchLine line = read_batch_line(bad.line);
    ASSERT_TRUE(line.problem) << bad.line;
    EXPECT_EQ(line.problem->status, 400);
    EXPECT_EQ(line.problem->code, bad.code) << bad.line;
    EXPECT_NE(line.problem->message.find(bad.message), std::string::npos) << line.problem->message;
    EXPECT_EQ(line.custom_id.has_value(), bad.named) << bad.line;
  }
}

TEST(BatchRecord, HasTheFormOfABatchAndSaysWhichLineItAnswers) {
  const BatchKey key{.number = 0xABCDEF012345, .hash = 0x0123456789ABCDEF};
  const std::string text = batch_record(key, "a \"quoted\"\n", 200, R"({"x":1})", std::nullopt);
  ASSERT_TRUE(text.ends_with('\n'));
  const Json record = Json::parse(text);
  EXPECT_EQ(record.at("id"), "batch_req_abcdef0123450123456789abcdef");
  EXPECT_EQ(record.at("custom_id"), "a \"quoted\"\n");
  EXPECT_EQ(record.at("response").at("status_code"), 200);
  EXPECT_TRUE(record["response"].at("request_id").get<std::string>().starts_with("req_"));
  EXPECT_EQ(record["response"].at("body").at("x"), 1);
  EXPECT_TRUE(record.at("error").is_null());
  EXPECT_EQ(record.size(), 4u);

  const auto read = read_batch_record(text);
  ASSERT_TRUE(read);
  EXPECT_EQ(read->number, key.number);
  EXPECT_EQ(read->hash, key.hash);
  EXPECT_EQ(batch_record_custom_id(text), R"("a \"quoted\"\n")");

  const ApiError problem{.message = "why", .code = "invalid_json_line"};
  const Json refused = Json::parse(batch_record(key, std::nullopt, 400, problem.json(), problem));
  EXPECT_TRUE(refused.at("custom_id").is_null());
  EXPECT_EQ(refused.at("response").at("body").at("error").at("message"), "why");
  EXPECT_EQ(refused.at("error").at("code"), "invalid_json_line");
  EXPECT_EQ(refused["error"].at("message"), "why");
}

TEST(BatchRecord, OtherLinesAreNone) {
  const std::string text = batch_record({.number = 1, .hash = 2}, "a", 200, "{}", std::nullopt);
  const std::size_t head = text.find("\"a\"");
  for (std::size_t length = 0; length < head; ++length) {
    EXPECT_FALSE(read_batch_record(text.substr(0, length))) << length;
    EXPECT_TRUE(may_be_batch_record(text.substr(0, length))) << length;
  }
  EXPECT_TRUE(read_batch_record(text.substr(0, head)));
  EXPECT_FALSE(read_batch_record(R"({"id":"batch_req_00000000000g0000000000000002","custom_id":"a"})"));
  EXPECT_FALSE(read_batch_record(R"({"id":"batch_req_000000000001000000000000000-","custom_id":"a"})"));
  EXPECT_FALSE(read_batch_record(R"({"id":"batch_req_0000000000010000000000000002","other":"a"})"));
  EXPECT_FALSE(may_be_batch_record("hello"));
  EXPECT_FALSE(may_be_batch_record(R"({"custom_id":"a")"));
}

}  // namespace
}  // namespace millrace
