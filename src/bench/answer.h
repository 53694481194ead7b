// Measures one streamed answer: bytes of the stream in, a RequestRecord out.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "bench/exchange.h"
#include "bench/openai.h"
#include "bench/sse.h"
#include "bench/statistics.h"

namespace millrace::bench {

/// The clock is the caller's: times in seconds from the start of the request, ascending.
class Answer {
 public:
  /// A piece of the body that arrived at `now_s`.
  BodyDemand take(std::string_view piece, double now_s);

  /// The exchange is over: fills in what `record` has of the answer. A complete stream counts, also where the
  /// connection broke behind it.
  void finish(const Exchange& exchange, double now_s, RequestRecord& record);

 private:
  void take_event(const SseEvent& event, double now_s);
  void take_chunk(const StreamChunk& chunk, double now_s);
  void fail_with(const char* name, std::string detail);

  SseParser parser_;
  std::vector<SseEvent> events_;
  double first_s_ = 0.0, last_s_ = 0.0;  // chunks with tokens
  std::int64_t tokens_ = 0;
  std::vector<double> itl_s_;
  bool done_ = false;      // [DONE]
  bool finished_ = false;  // a finish_reason
  double end_s_ = 0.0;     // when the first of both came
  std::optional<Usage> usage_;
  std::string failure_, detail_;
};

}  // namespace millrace::bench
