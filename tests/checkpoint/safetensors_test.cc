// Headers of safetensors files, right and wrong.
#include "model/checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include "checkpoint/file_builders.h"

namespace millrace {
namespace {

Result<SafetensorsFile> parse(const std::string& file) {
  return parse_safetensors(std::as_bytes(std::span(file)), "file");
}

/// The message for a header, with 8 bytes of data behind it; empty where it is accepted.
std::string error_of(const std::string& header) {
  const auto parsed = parse(safetensors_file(header, std::string(8, '\0')));
  return parsed.ok() ? "" : parsed.error().message;
}

TEST(Safetensors, ReadsAllShapes) {
  const std::string file = safetensors_file({{"scalar", "F32", {}, std::string(4, '\1')},
                                             {"empty", "F32", {0, 3}, ""},
                                             {"bytes", "U8", {2, 3}, "abcdef"},
                                             {"eight", "F8_E5M2", {2}, "gh"}});
  const auto parsed = parse(file);
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  ASSERT_EQ(parsed->tensors.size(), 2u);
  EXPECT_EQ(parsed->tensors[0].name, "scalar");
  EXPECT_TRUE(parsed->tensors[0].shape.empty());
  EXPECT_EQ(parsed->tensors[0].elements(), 1);
  EXPECT_EQ(parsed->tensors[1].format, QuantFormat::u8);
  EXPECT_EQ(static_cast<char>(parsed->tensors[1].data[5]), 'f');
  EXPECT_EQ(parsed->unreadable.at("empty"), "no elements");
  EXPECT_EQ(parsed->unreadable.at("eight"), "F8_E5M2");
}

TEST(Safetensors, AcceptsWhatTheFormatAllows) {
  EXPECT_EQ(error_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})"), "");
  EXPECT_EQ(error_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}     )"), "");
  EXPECT_EQ(error_of(R"({"b":{"data_offsets":[4,8],"shape":[1,1],"dtype":"F32"},)"
                     R"("__metadata__":{"format":"pt"},"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}})"),
            "");
}

struct WrongHeader {
  const char* header;
  const char* expected;
};

TEST(Safetensors, RefusesWithAReason) {
  const WrongHeader cases[] = {
      {"", "not valid JSON"},
      {"[]", "an array"},
      {"{", "not valid JSON"},
      {R"({"a":1})", "a number"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}} x)", "not valid JSON"},
      {R"({"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}})", "unknown dtype 'F31'"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":[]}})", "the key 'x'"},
      {R"({"a":{"dtype":"F32","shape":[2]}})", "without dtype, shape"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", "without dtype, shape"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}})", "more than two data_offsets"},
      {R"({"a":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}})", "twice"},
      {R"({"a":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}})", "an array"},
      {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", "a negative number"},
      {R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", "a fraction"},
      {R"({"a":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8]}})", "above 2^63"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}})", "does not fit"},
      {R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]}})", "8 dimensions"},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", "does not fit"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", "claims the bytes"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,16]}})", "claims the bytes"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "end at byte 4 of 8"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", "leave a hole"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       "overlap"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       "'a' is there twice"},
      {R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,8]}})", "does not fit"},
      {R"({"__metadata__":{"x":1}})", "a number"},
      {R"({"__metadata__":{"x":{}}})", "an object"},
  };
  for (const WrongHeader& wrong : cases) {
    EXPECT_NE(error_of(wrong.header).find(wrong.expected), std::string::npos)
        << wrong.header << "\n  " << error_of(wrong.header);
  }
}

TEST(Safetensors, RefusesImpossibleHeaderLengths) {
  EXPECT_FALSE(parse("").ok());
  EXPECT_FALSE(parse("1234567").ok());
  for (const std::uint64_t length : {std::uint64_t{100}, std::uint64_t{1} << 40, ~std::uint64_t{0}}) {
    std::string file;
    append(file, length);
    const auto parsed = parse(file + "{}");
    ASSERT_FALSE(parsed.ok());
    EXPECT_NE(parsed.error().message.find("header claims"), std::string::npos);
  }
}

}  // namespace
}  // namespace millrace
