// GatewayEngine: the cluster in the place of an engine. Requests from any thread become streams, and what their nodes
// say becomes the events that an engine would have sent: with text, stop strings and times.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cluster/event_loop.h"
#include "cluster/gateway_streams.h"
#include "engine/answer_text.h"
#include "engine/report.h"
#include "engine/request.h"

namespace millrace {

/// Functions of the names and meanings that Engine has. Sinks are called on the loop.
class GatewayEngine {
 public:
  /// `model`: as nodes' records name it; `vocab` and `hidden` are its. `tokenizer` may be null; it, `streams` and
  /// `loop` must outlive this.
  GatewayEngine(GatewayStreams& streams, EventLoop& loop, std::string model, const Tokenizer* tokenizer,
                std::int32_t vocab, std::int64_t hidden);
  ~GatewayEngine();

  /// Any thread. What is wrong with a request, nodes say: its error comes to the sink.
  Result<RequestId> submit(Request request, Sink sink);
  /// Any thread.
  void cancel(RequestId id);
  /// Any thread.
  void resume(RequestId id, std::int32_t choice);

  /// Seconds without a token after which a second node is asked as well; the one that answers first goes on alone. To
  /// be set before the first request.
  double hedge_after = std::numeric_limits<double>::infinity();

  struct Counters {
    std::int64_t hedged = 0;  // requests that a second node was asked for
    std::int64_t won = 0;     // … that it answered: first, or because the other one could not
  };
  /// On the loop.
  [[nodiscard]] const Counters& counters() const { return counters_; }

  /// On the loop: what work costs, in dollars, and the energy that it took, in joules.
  std::function<std::pair<double, double>(const NodeWork&)> cost;

  /// On the loop: what ended how, with what became of it on its way.
  std::function<void(const RequestReport&, const StreamDone&)> on_request;

 private:
  using Clock = std::chrono::steady_clock;

  struct Choice {
    AnswerText text;
    Clock::time_point first, last;
    std::int64_t tokens = 0;
    std::vector<float> embedding;
    bool ended = false;
    FinishReason finish = FinishReason::none;  // how, where it has
  };
  struct Live {
    StreamId stream = 0;
    StreamId hedge = 0;                       // the second one, while nobody has answered; 0: there is none
    std::optional<Placement> placement = {};  // for that
    std::vector<NodeWork> lost = {};          // of the one that was not taken
    Request request;                          // without its prompt
    std::int64_t prompt_tokens = 0;
    Sink sink;
    Clock::time_point submitted;
    std::vector<Choice> choices;
    std::size_t open_choices = 0;
  };

  void submit_stream(RequestId id, Live& live, Placement placement, const std::string& avoid, StreamId& stream);
  void hedge(RequestId id);
  /// The first token has come from this stream.
  void choose(Live& live, StreamId stream);
  Demand on_stream(RequestId id, StreamId stream, const StreamNews& news);
  Demand on_news(RequestId id, const StreamNews& news);
  Demand on_token(RequestId id, Live& live, const TokenCame& came);
  void end_choice(RequestId id, Live& live, std::int32_t choice, TokenEvent event, const StreamDone& done);
  [[nodiscard]] RequestSummary summarize(const Live& live, const StreamDone& done) const;

  GatewayStreams* streams_;
  EventLoop* loop_;
  std::string model_;
  const Tokenizer* tokenizer_;
  std::int32_t vocab_;
  std::int64_t hidden_;
  Counters counters_;
  std::atomic<RequestId> next_id_{1};
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // looked at on the loop alone
  std::unordered_map<RequestId, std::unique_ptr<Live>> live_;
};

}  // namespace millrace
