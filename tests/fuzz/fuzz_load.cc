// Any bytes as what a load test reads: a trace, a stream of events, an answer.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "bench/answer.h"
#include "bench/sse.h"
#include "bench/trace.h"

namespace {

using namespace millrace::bench;

void require(bool condition) {
  if (!condition) std::abort();
}

std::vector<SseEvent> events_of(std::string_view text, std::size_t piece) {
  SseParser parser;
  std::vector<SseEvent> events;
  for (std::size_t at = 0; at < text.size(); at += piece) {
    if (!parser.feed(text.substr(at, piece), events).ok()) return {};
  }
  parser.finish(events);
  return events;
}

void check_trace(std::string_view text) {
  auto trace = parse_trace(text, "trace");
  if (!trace.ok()) {
    require(!trace.error().message.empty());
    return;
  }
  require(!trace->records.empty());
  double last = 0.0;
  for (const TraceRecord& record : trace->records) {
    require(record.arrival_s >= last && record.input_tokens >= 0 && record.output_tokens >= 0);
    last = record.arrival_s;
  }
  (void)scale_trace(*trace, 0.5, 0.1);
}

void check_answer(std::string_view text) {
  Answer answer;
  for (std::size_t at = 0; at < text.size(); at += 11) {
    (void)answer.take(text.substr(at, 11), static_cast<double>(at));
  }
  Exchange exchange;
  exchange.status = 200;
  RequestRecord record;
  answer.finish(exchange, static_cast<double>(text.size()), record);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 3 == 0) check_trace(text);
  if (data[0] % 3 == 1) {
    const std::vector<SseEvent> whole = events_of(text, size), pieces = events_of(text, 1);
    require(whole.size() == pieces.size());
    for (std::size_t i = 0; i < whole.size(); ++i) {
      require(whole[i].name == pieces[i].name && whole[i].data == pieces[i].data);
    }
  }
  if (data[0] % 3 == 2) check_answer(text);
  return 0;
}
