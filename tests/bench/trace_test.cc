#include "bench/trace.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>

#include "bench/gzip.h"

namespace millrace::bench {
namespace {

const std::string kHeader = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n";

TEST(ParseTrace, AzureCsv) {
  const auto trace = parse_trace(
      kHeader +
          "2023-11-16 23:59:59.9799600,4808,10\r\n\r\n2023-11-17T00:00:00.4799601Z,3,8\n2023-11-17 01:00:01+01:00,1,2",
      "t");
  ASSERT_TRUE(trace.ok()) << trace.error().message;
  ASSERT_EQ(trace->records.size(), 3u);
  EXPECT_EQ(trace->records[0].arrival_s, 0.0);
  EXPECT_NEAR(trace->records[1].arrival_s, 0.5000001, 1e-9);
  EXPECT_NEAR(trace->records[2].arrival_s, 1.02004, 1e-9);
  EXPECT_EQ(trace->records[0].input_tokens, 4808);
  EXPECT_EQ(trace->records[2].output_tokens, 2);
  EXPECT_TRUE(trace->records[0].hash_ids.empty());
}

TEST(ParseTrace, MooncakeLines) {
  const auto trace = parse_trace(
      R"({"timestamp": 2500, "input_length": 513, "output_length": 5, "hash_ids": [7, 9223372036854775807], "more": {}})"
      "\n"
      R"({"timestamp": 500.5, "input_length": 1024, "output_length": 1})",
      "t");
  ASSERT_TRUE(trace.ok()) << trace.error().message;
  ASSERT_EQ(trace->records.size(), 2u);
  EXPECT_EQ(trace->records[0].input_tokens, 1024);  // sorted by arrival
  EXPECT_EQ(trace->records[0].arrival_s, 0.0);
  EXPECT_NEAR(trace->records[1].arrival_s, 1.9995, 1e-12);
  EXPECT_EQ(trace->records[1].hash_ids, (std::vector<std::int64_t>{7, 9223372036854775807}));
  EXPECT_EQ(trace->block_tokens, 512);
}

TEST(ParseTrace, HostileLinesAreNamed) {
  const std::string good = kHeader + "2023-11-16 18:17:03.97,1,1\n";
  for (const char* line :
       {"x", "2023-11-16 18:17:03,1", "2023-11-16 18:17:03,1,2,3", "2023-11-16 18:17:03,-1,2", "2023-11-16 18:17:03,1,",
        "2023-11-16 18:17:03,1,99999999999999999999", "2023-11-16 18:17:03,16777217,1", "2023-02-30 18:17:03,1,2",
        "2023-11-16 24:17:03,1,2", "2023-11-16 18:17:03.,1,2", "2023-11-16 18:17:03+1,1,2", "23-11-16 18:17:03,1,2",
        "2023-11-16 18:17,1,2", ",,", "\x01\xff,1,2"}) {
    const auto trace = parse_trace(good + line + "\n", "file");
    ASSERT_FALSE(trace.ok()) << line;
    EXPECT_TRUE(trace.error().message.starts_with("file:3: ")) << trace.error().message;
    EXPECT_EQ(trace.error().message.find_first_of("\n\x01\xff"), std::string::npos);
  }
  const std::string record = R"({"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [0]})";
  for (const char* line :
       {"{", "[]", "7", R"({"input_length": 1, "output_length": 1})",
        R"({"timestamp": "0", "input_length": 1, "output_length": 1})",
        R"({"timestamp": -1, "input_length": 1, "output_length": 1})",
        R"({"timestamp": 1e300, "input_length": 1, "output_length": 1})",
        R"({"timestamp": 0, "input_length": 1.5, "output_length": 1})",
        R"({"timestamp": 0, "input_length": -1, "output_length": 1})",
        R"({"timestamp": 0, "input_length": 1, "output_length": 18446744073709551615})",
        R"({"timestamp": 0, "input_length": 513, "output_length": 1, "hash_ids": [1]})",
        R"({"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [1, 2]})",
        R"({"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [-1]})",
        R"({"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [9223372036854775808]})",
        R"({"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": ["1"]})",
        R"({"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": 1})"}) {
    const auto trace = parse_trace(record + "\n\n" + line, "file");
    ASSERT_FALSE(trace.ok()) << line;
    EXPECT_TRUE(trace.error().message.starts_with("file:3: ")) << trace.error().message;
  }
  for (const std::string& text : {std::string(), std::string("\n \n"), kHeader, std::string("a,b,c\n1,2,3"),
                                  std::string(100000, '['), "{\"a\":" + std::string(100000, '[')}) {
    EXPECT_FALSE(parse_trace(text, "file").ok());
  }
}

TEST(ParseTrace, DamagedTextNeverBreaksIt) {
  const std::string whole = kHeader + "2023-11-16 18:17:03.97,1,1\n2023-11-16 18:17:04.97+02:00,100,1\n";
  const std::string lines = R"({"timestamp": 10, "input_length": 600, "output_length": 5, "hash_ids": [7, 8]})"
                            "\n"
                            R"({"timestamp": 11.5, "input_length": 2, "output_length": 5})";
  std::mt19937 random(1);
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string text = round % 2 == 0 ? whole : lines;
    for (auto change = random() % 3; change < 3; ++change) {
      text[random() % text.size()] = static_cast<char>(random() % 256);
    }
    if (random() % 4 == 0) text.resize(random() % text.size());
    const auto trace = parse_trace(text, "file");
    if (!trace.ok()) {
      EXPECT_EQ(trace.error().message.find('\n'), std::string::npos);
      continue;
    }
    ++accepted;
    for (const TraceRecord& record : trace->records) {
      EXPECT_TRUE(record.arrival_s >= 0 && std::isfinite(record.arrival_s) && record.input_tokens >= 0);
    }
  }
  EXPECT_GT(accepted, 100);
}

TEST(ScaleTrace, TimesLengthsAndBlocks) {
  Trace trace{.records = {{0, 1024, 100, {1, 2}}, {10, 1, 1, {1}}}};
  ASSERT_TRUE(scale_trace(trace, 2, 0.125).ok());
  EXPECT_EQ(trace.block_tokens, 64);
  EXPECT_EQ(trace.records[0].input_tokens, 128);
  EXPECT_EQ(trace.records[0].output_tokens, 13);
  EXPECT_EQ(trace.records[1].arrival_s, 20);
  EXPECT_EQ(trace.records[1].input_tokens, 1);
  EXPECT_FALSE(scale_trace(trace, 0, 1).ok());
  EXPECT_FALSE(scale_trace(trace, 1, NAN).ok());
  EXPECT_FALSE(scale_trace(trace, INFINITY, 1).ok());
  EXPECT_FALSE(scale_trace(trace, 1, 1e6).ok());
}

std::string gzipped(const std::string& text) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, Z_BEST_SPEED, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(deflateBound(&stream, static_cast<uLong>(text.size())), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

TEST(Gunzip, RoundTripMembersAndDamage) {
  std::string text;
  for (int i = 0; i < 200000; ++i) text += std::to_string(i * 7919);
  const std::string packed = gzipped(text);
  const auto content = gunzip(packed + gzipped("end"), "f", std::size_t{1} << 30);
  ASSERT_TRUE(content.ok()) << content.error().message;
  EXPECT_EQ(*content, text + "end");
  EXPECT_EQ(*gunzip(gzipped(""), "f", 10), "");
  EXPECT_NE(gunzip(packed, "f", 1000).error().message.find("more than 1000"), std::string::npos);
  EXPECT_NE(gunzip(packed.substr(0, packed.size() / 2), "f", 1 << 30).error().message.find("cut short"),
            std::string::npos);
  std::string damaged = packed;
  damaged[damaged.size() / 2] = static_cast<char>(damaged[damaged.size() / 2] ^ 0x55);
  EXPECT_FALSE(gunzip(damaged, "f", 1 << 30).ok());
  EXPECT_FALSE(gunzip(packed + "trailing", "f", 1 << 30).ok());
  EXPECT_FALSE(gunzip("", "f", 10).ok());
}

TEST(ReadTrace, PlainOrCompressedByContent) {
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "bench_read_trace";
  const std::string text = R"({"timestamp": 0, "input_length": 5, "output_length": 6, "hash_ids": [1]})";
  for (const std::string& content : {text, gzipped(text)}) {
    std::ofstream(path, std::ios::binary) << content;
    const auto trace = read_trace(path);
    ASSERT_TRUE(trace.ok()) << trace.error().message;
    EXPECT_EQ(trace->records.at(0).output_tokens, 6);
  }
  std::filesystem::remove(path);
  EXPECT_NE(read_trace(path).error().message.find("bench_read_trace"), std::string::npos);
}

std::filesystem::path data(const char* name) {
  return std::filesystem::path(MILLRACE_SOURCE_DIR) / "../shared/data/traces" / name;
}

TEST(TraceData, ThePublishedTracesAreRead) {
  if (!std::filesystem::exists(data(""))) GTEST_SKIP() << data("") << " is absent";
  const auto conversation = read_trace(data("AzureLLMInferenceTrace_conv.csv"));
  ASSERT_TRUE(conversation.ok()) << conversation.error().message;
  EXPECT_EQ(conversation->records.size(), 19366u);
  EXPECT_NEAR(conversation->records.back().arrival_s, 3501.721937, 1e-6);
  EXPECT_EQ(conversation->records.back().output_tokens, 183);
  const auto code = read_trace(data("AzureLLMInferenceTrace_code.csv"));
  ASSERT_TRUE(code.ok()) << code.error().message;
  EXPECT_EQ(code->records.size(), 8819u);
  const auto mooncake = read_trace(data("mooncake_conversation_trace.jsonl.gz"));
  ASSERT_TRUE(mooncake.ok()) << mooncake.error().message;
  EXPECT_EQ(mooncake->records.size(), 12031u);
  EXPECT_EQ(mooncake->records.back().arrival_s, 3536.999);
  EXPECT_EQ(mooncake->records.front().hash_ids.size(), 14u);
}

}  // namespace
}  // namespace millrace::bench
