#include "bench/answer.h"

#include <fmt/format.h>

#include <utility>

namespace millrace::bench {

void Answer::fail_with(const char* name, std::string detail) {
  if (!failure_.empty()) return;
  failure_ = name;
  detail_ = std::move(detail);
}

BodyDemand Answer::take(std::string_view piece, double now_s) {
  events_.clear();
  if (const Status status = parser_.feed(piece, events_); !status.ok()) fail_with("protocol", status.error().message);
  for (const SseEvent& event : events_) take_event(event, now_s);
  if (!failure_.empty()) return BodyDemand::stop;
  return done_ ? BodyDemand::end : BodyDemand::more;
}

void Answer::take_event(const SseEvent& event, double now_s) {
  const std::size_t first = event.data.find_first_not_of(" \t");
  const std::size_t last = event.data.find_last_not_of(" \t");
  if (done_ || first == std::string::npos) return;
  const std::string_view data = std::string_view(event.data).substr(first, last - first + 1);
  if (data == "[DONE]") {
    done_ = true;
    if (!finished_) end_s_ = now_s;
  } else if (event.name == "error") {
    fail_with("server_error", error_message(data));
  } else if (const Result<StreamChunk> chunk = parse_chunk(data); !chunk.ok()) {
    fail_with("protocol", chunk.error().message);
  } else {
    take_chunk(*chunk, now_s);
  }
}

void Answer::take_chunk(const StreamChunk& chunk, double now_s) {
  if (!chunk.error.empty()) return fail_with("server_error", chunk.error);
  if (chunk.usage) usage_ = chunk.usage;
  if (chunk.tokens > 0) {
    if (tokens_ == 0) {
      first_s_ = now_s;
    } else {
      itl_s_.push_back(now_s - last_s_);
    }
    last_s_ = now_s;
    tokens_ += chunk.tokens;
  }
  if (chunk.finished && !std::exchange(finished_, true)) end_s_ = now_s;
}

void Answer::finish(const Exchange& exchange, double now_s, RequestRecord& record) {
  if (exchange.status == 200) {
    events_.clear();
    parser_.finish(events_);
    // A stream that broke off may have left half an event; what it lacks is said below.
    if (exchange.failure.empty()) {
      for (const SseEvent& event : events_) take_event(event, now_s);
    }
  }
  const bool complete = done_ || finished_;
  record.status = exchange.status;
  record.retry_after_s = exchange.retry_after_s;
  if (exchange.status != 200 && exchange.status != 0) {
    fail_with(fmt::format("http_{}", exchange.status).c_str(), error_message(exchange.body));
  } else if (!complete && !exchange.failure.empty()) {
    fail_with(exchange.failure.c_str(), exchange.detail);
  } else if (!complete && !exchange.content_type.starts_with("text/event-stream")) {
    fail_with("not_a_stream", fmt::format("expected text/event-stream, got {}", quote_json(exchange.content_type)));
  } else if (!complete) {
    fail_with("cut_short", "the stream ended with neither a finish_reason nor [DONE]");
  }
  // An answer of special tokens alone may show nothing before its end.
  if (tokens_ == 0 && usage_ && usage_->completion_tokens > 0) {
    first_s_ = last_s_ = end_s_;
  } else if (tokens_ == 0) {
    fail_with("no_token", "an answer without a token");
  }
  record.ttft_s = first_s_;
  record.e2e_s = last_s_;
  record.itl_s = std::move(itl_s_);
  record.output_tokens = usage_ ? usage_->completion_tokens : tokens_;
  if (usage_) {
    record.input_tokens = usage_->prompt_tokens;
    record.cached_tokens = usage_->cached_tokens;
    record.cost_usd = usage_->cost_usd;
    record.energy_j = usage_->energy_j;
    record.node = usage_->node;
  }
  record.usage_reported = usage_.has_value();
  record.failure = failure_;
  record.detail = detail_;
}

}  // namespace millrace::bench
