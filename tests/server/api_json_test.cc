#include "server/api_json.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>

namespace millrace {
namespace {

TEST(ApiJson, EscapesWhatJsonNeeds) {
  EXPECT_EQ(json_string("a\"b\\c\n\r\t\x01/é"), R"("a\"b\\c\n\r\t\u0001/é")");
  EXPECT_EQ(json_string(std::string("\0", 1)), R"("\u0000")");
  EXPECT_EQ(json_string("\x7F"), "\"\x7F\"");
}

TEST(ApiJson, ReplacesBytesThatAreNotUtf8) {
  const std::string replacement = "\xEF\xBF\xBD";
  EXPECT_EQ(json_string("a\xFFz"), "\"a" + replacement + "z\"");
  EXPECT_EQ(json_string("\xC0\x80"), '"' + replacement + replacement + '"');                    // overlong
  EXPECT_EQ(json_string("\xED\xA0\x80"), '"' + replacement + replacement + replacement + '"');  // a surrogate
  EXPECT_EQ(json_string("\xF0\x9F\x98"), '"' + replacement + replacement + replacement + '"');  // cut off
}

/// Any bytes give a JSON string that parses, to the bytes themselves when they are UTF-8.
TEST(ApiJson, RandomStringsSurviveAParser) {
  std::mt19937 random(7);
  const std::string pieces[] = {"a", "\"",   "\\",       "\n",   "\x1F", "é",     "漢",
                                "😀", "\x80", "\xE2\x82", "\xF5", "</",   "\u2028"};
  for (int round = 0; round < 20'000; ++round) {
    std::string text;
    for (auto length = random() % 12; length > 0; --length) {
      if (random() % 2 == 0) {
        text += pieces[random() % std::size(pieces)];
      } else {
        text += static_cast<char>(random() % 256);
      }
    }
    const Json parsed = Json::parse(json_string(text), nullptr, false);
    ASSERT_TRUE(parsed.is_string()) << json_string(text);
    const auto& got = parsed.get_ref<const std::string&>();
    ASSERT_TRUE(is_utf8(got));
    if (is_utf8(text)) {
      ASSERT_EQ(got, text);
    }
    // nlohmann-json is another opinion on what UTF-8 is.
    bool accepted = true;
    try {
      (void)Json(text).dump();
    } catch (const Json::exception&) {
      accepted = false;
    }
    ASSERT_EQ(is_utf8(text), accepted);
  }
}

TEST(ApiJson, NumbersAreShortAndFinite) {
  const auto number = [](float value) {
    std::string out;
    append_json_number(out, value);
    return out;
  };
  EXPECT_EQ(number(-0.5f), "-0.5");
  EXPECT_EQ(number(-INFINITY), "-9999");
  EXPECT_EQ(number(NAN), "-9999");
  std::mt19937 random(3);
  for (int i = 0; i < 1000; ++i) {
    const float value = std::ldexp(static_cast<float>(random()), static_cast<int>(random() % 80) - 60);
    EXPECT_EQ(Json::parse(number(value)).get<float>(), value);
  }
}

TEST(ApiJson, KeepsOrderAndTheLastOfEqualKeys) {
  const auto body = parse_body(R"({"z":1,"a":2,"z":3})");
  ASSERT_TRUE(body.ok());
  EXPECT_EQ(body->dump(), R"({"z":3,"a":2})");
}

TEST(ApiJson, RefusesBadBodies) {
  const auto message = [](const std::string& body) {
    const auto parsed = parse_body(body);
    if (parsed.ok()) return std::string("accepted");
    EXPECT_EQ(parsed.error().status, 400);
    EXPECT_EQ(parsed.error().type, "invalid_request_error");
    EXPECT_FALSE(parsed.error().param.has_value());
    return parsed.error().message;
  };
  EXPECT_EQ(message(""), "The body is not valid JSON (byte 1 of 0).");
  EXPECT_EQ(message("{\"a\":"), "The body is not valid JSON (byte 6 of 5).");
  EXPECT_EQ(message("{\"a\":\"\xFF\"}"), "The body is not UTF-8.");
  EXPECT_EQ(message("[1]"), "The body is an array, expected a JSON object.");
  EXPECT_EQ(message("{\"a\":1e999}"), "The body holds a number that is out of range.");
  EXPECT_EQ(message("{} x"), "The body is not valid JSON (byte 4 of 4).");
  EXPECT_EQ(message(std::string(200'000, '[')), "The body is nested more than 100 levels deep.");
  EXPECT_EQ(message("{\"a\":[" + std::string(5'000'000, ',') + "]}"), "The body has more than 2000000 values.");
  std::string keys = "{\"a\":0";
  for (int i = 0; i < 100'000; ++i) keys += ",\"" + std::to_string(i) + "\":0";
  EXPECT_EQ(message(keys + "}"), "An object of the body has too many keys.");
  EXPECT_EQ(message(keys), "An object of the body has too many keys.");
}

TEST(ApiJson, FieldsKeepTheFirstError) {
  const Json json =
      Json::parse(R"({"number":"x","flag":1,"count":2.5,"null":null,"list":{},"big":18446744073709551615})");
  const auto error_of = [&](auto read) {
    Fields fields(json, "outer");
    read(fields);
    return fields.error ? fields.error->json() : "none";
  };
  EXPECT_EQ(error_of([](Fields& f) { f.number("number", 1.0, 0.0, 2.0); }),
            R"({"error":{"message":"Invalid type for 'outer.number': expected a number, got a string.",)"
            R"("type":"invalid_request_error","param":"outer.number","code":"invalid_type"}})");
  EXPECT_EQ(error_of([](Fields& f) { EXPECT_EQ(f.integer("null", 7, 0, 9), 7); }), "none");
  EXPECT_EQ(error_of([](Fields& f) { EXPECT_EQ(f.text("absent", "x"), "x"); }), "none");
  EXPECT_NE(error_of([](Fields& f) { f.integer("count", 0, 0, 9); }).find("got a decimal"), std::string::npos);
  EXPECT_NE(error_of([](Fields& f) { f.integer("big", 0, 0, INT64_MAX); }).find("integer_above_max_value"),
            std::string::npos);
  EXPECT_NE(error_of([](Fields& f) {
              f.boolean("flag", false);
              f.array("list");
            }).find("outer.flag"),
            std::string::npos);
}

TEST(ApiError, SaysWhatTheEngineSaid) {
  const ApiError busy = ApiError::from({.message = "full", .kind = ErrorKind::busy});
  EXPECT_EQ(busy.status, 429);
  EXPECT_GE(busy.retry_after_s.value_or(0), 1);
  EXPECT_EQ(busy.json(),
            R"({"error":{"message":"full","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}})");
  EXPECT_EQ(ApiError::from({.message = "drains", .kind = ErrorKind::unavailable}).status, 503);
  EXPECT_EQ(ApiError::from({.message = "bad", .kind = ErrorKind::invalid}).status, 400);
  EXPECT_EQ(ApiError::internal("oops").status, 500);
}

}  // namespace
}  // namespace millrace
