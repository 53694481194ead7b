#include "bench/sse.h"

#include <gtest/gtest.h>

namespace millrace::bench {
namespace {

std::vector<std::string> parse(const std::string& text, std::size_t piece) {
  SseParser parser;
  std::vector<SseEvent> events;
  for (std::size_t at = 0; at < text.size(); at += piece) {
    EXPECT_TRUE(parser.feed(std::string_view(text).substr(at, piece), events).ok());
  }
  parser.finish(events);
  std::vector<std::string> shown;
  for (const SseEvent& event : events) shown.push_back(event.name + "|" + event.data);
  return shown;
}

TEST(Sse, AnyFramingGivesTheSameEvents) {
  const std::vector<std::string> expected{"|one", "named|two\nlines", "|", "|{\"a\": 1}", "error|bad", "|[DONE]"};
  const std::string lines =
      "\xEF\xBB\xBF: ping\ndata: one\n\n:\n\nevent: named\nid: 7\ndata:two\ndata: lines\nretry: "
      "10\n\n\n\ndata\n\nevent: "
      "lost\n\ndata: {\"a\": 1}\n\nerror: bad\n\ndata: [DONE]";
  std::string crlf, cr;
  for (const char c : lines) {
    crlf += c == '\n' ? "\r\n" : std::string(1, c);
    cr += c == '\n' ? '\r' : c;
  }
  for (const std::string& text : {lines, lines + "\n", lines + "\n\n", crlf, crlf + "\r\n\r\n", cr, cr + "\r\r"}) {
    for (const std::size_t piece : {std::size_t{1}, std::size_t{2}, std::size_t{3}, std::size_t{7}, text.size()}) {
      EXPECT_EQ(parse(text, piece), expected) << "pieces of " << piece;
    }
  }
}

TEST(Sse, AnEventWithoutEndIsRefusedBeforeMemoryIsFull) {
  SseParser parser;
  std::vector<SseEvent> events;
  const std::string line = "data: " + std::string(1 << 20, 'x');
  Status status = Ok{};
  int fed = 0;
  for (; fed < 100 && status.ok(); ++fed) status = parser.feed(fed % 2 == 0 ? line : line + "\n", events);
  EXPECT_FALSE(status.ok());
  EXPECT_LE(fed, 17);
  EXPECT_TRUE(events.empty());
}

}  // namespace
}  // namespace millrace::bench
