#include "bench/answer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "bench/scripted_server.h"

namespace millrace::bench {
namespace {

Exchange stream_of(int status = 200) {
  Exchange exchange;
  exchange.status = status;
  exchange.content_type = "text/event-stream";
  return exchange;
}

TEST(Answer, MeasuresWithTheClockThatItIsGiven) {
  Answer answer;
  EXPECT_EQ(answer.take(": ping\n\n", 0.5), BodyDemand::more);
  EXPECT_EQ(answer.take(token_event() + token_event(), 1.0), BodyDemand::more);  // in one read: no time between them
  EXPECT_EQ(answer.take(token_event(), 1.25), BodyDemand::more);
  EXPECT_EQ(answer.take(end_events(7, 3), 2.0), BodyDemand::end);
  EXPECT_EQ(answer.take("data: {broken\n\n", 3.0), BodyDemand::end);  // nothing counts behind [DONE]
  RequestRecord record;
  answer.finish(stream_of(), 4.0, record);
  EXPECT_TRUE(record.ok()) << record.detail;
  EXPECT_EQ(record.ttft_s, 1.0);
  EXPECT_EQ(record.e2e_s, 1.25);
  EXPECT_EQ(record.itl_s, (std::vector<double>{0.0, 0.25}));
  EXPECT_EQ(record.tpot_s(), 0.125);
}

TEST(Answer, HiddenTokensAreThereAtTheEnd) {
  Answer answer;
  answer.take("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\n", 1.0);
  EXPECT_EQ(answer.take("data: [DONE]\n\n", 1.5), BodyDemand::end);
  RequestRecord record;
  answer.finish(stream_of(), 4.0, record);
  EXPECT_TRUE(record.ok()) << record.detail;
  EXPECT_EQ(record.ttft_s, 1.5);
  EXPECT_EQ(record.output_tokens, 2);
}

TEST(Answer, TheFirstErrorIsTheOneThatIsReported) {
  Answer answer;
  EXPECT_EQ(answer.take("data: {\"error\":\"first\"}\n\ndata: {\"error\":\"second\"}\n\n", 1.0), BodyDemand::stop);
  RequestRecord record;
  answer.finish(stream_of(), 2.0, record);
  EXPECT_EQ(record.failure, "server_error");
  EXPECT_EQ(record.detail, "first");
}

// Whatever a server sends, an answer either has tokens and an end or a failure with a name.
TEST(Answer, DamagedStreamsNeverBreakIt) {
  const std::string good = token_event() + ": ping\n\n" + token_event() + end_events(7, 2);
  std::mt19937 random(7);
  int succeeded = 0;
  for (int round = 0; round < 5000; ++round) {
    std::string bytes = good;
    for (auto change = random() % 4; change < 3; ++change) {
      bytes[random() % bytes.size()] = static_cast<char>(random() % 256);
    }
    if (random() % 3 == 0) bytes.resize(random() % bytes.size());
    Answer answer;
    double now = 0;
    BodyDemand demand = BodyDemand::more;
    for (std::size_t at = 0; at < bytes.size() && demand != BodyDemand::stop;) {
      const std::size_t size = 1 + random() % 200;
      demand = answer.take(std::string_view(bytes).substr(at, size), now += 0.25);
      at += size;
    }
    RequestRecord record;
    answer.finish(stream_of(), now, record);
    EXPECT_EQ(record.detail.find('\n'), std::string::npos);
    if (!record.ok()) continue;
    ++succeeded;
    EXPECT_GT(record.ttft_s, 0);
    EXPECT_LE(record.ttft_s, record.e2e_s);
  }
  EXPECT_GT(succeeded, 250);
}

}  // namespace
}  // namespace millrace::bench
